//! What a server reads in place of what its peer sent.

/// Rewrites the bytes of one connection.
pub trait Rewrite {
    /// Returns how many of the first bytes of `received` pass as they are; those are done with. The
    /// others are to be rewritten.
    fn pass(&mut self, received: &[u8]) -> usize;

    /// Takes received bytes and appends what the server shall read. It may keep some back, and is
    /// called without any before more are read.
    fn rewrite(&mut self, received: &[u8], out: &mut Vec<u8>);
}
