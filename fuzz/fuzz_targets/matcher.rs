#![no_main]
//! Filters compile or are rejected, and their result on a request agrees with their own
//! explanation.
use traffic_core::routing::Request;
use traffic_core::routing::matcher::{Filters, HeaderFilter, Names, PathFilter, View};
use libfuzzer_sys::fuzz_target;

struct Asked<'a>(&'a [u8], &'a [u8]);
impl Request for Asked<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn target(&self) -> &[u8] {
        self.0
    }
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        visit(b"X-Dev", self.1);
        visit(b"accept", b"*/*");
    }
}

fuzz_target!(|input: (&str, &str, &[u8], &[u8])| {
    let (pattern, path, target, value) = input;
    let headers = vec![HeaderFilter::new("x-dev", pattern)];
    let paths = PathFilter::parse(path).into_iter().collect();
    let filters = Filters { headers, paths, ..Filters::default() };
    let names = Names::of(std::iter::once(&filters));
    let asked = Asked(target, value);
    let view = View::new(&asked, &names);
    assert_eq!(filters.matches(&view), filters.first_failure(&view).is_none());
});
