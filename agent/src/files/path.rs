//! Paths as lists of elements, as clients name them.

/// Elements of a path from the root, `.`, `..` and empty ones taken off.
pub(crate) fn normalised(path: &[u8]) -> Vec<Vec<u8>> {
    let mut elements: Vec<Vec<u8>> = Vec::new();
    for element in path.split(|b| *b == b'/') {
        match element {
            b"" | b"." => {}
            b".." => drop(elements.pop()),
            name => elements.push(name.to_vec()),
        }
    }
    elements
}

/// Joins elements to an absolute path.
pub(crate) fn absolute(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut path = vec![b'/'];
    path.extend(elements.join(&b'/'));
    path
}
