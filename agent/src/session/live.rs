//! The loops of a live session: remain, watch, dial, DNS, log level.
