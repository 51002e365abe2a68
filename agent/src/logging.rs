//! Log output: format, levels at run time, and the filter behind both.
