//! Read-only views of the running agent, and the few switches an operator may turn.
