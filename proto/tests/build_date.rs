//! The day that the build script makes of a time.

#[allow(dead_code, reason = "the script's own main is not run here")]
#[path = "../build.rs"]
mod build;

#[test]
fn days_are_those_of_the_calendar() {
    for (seconds, day) in [
        (0, "1970-01-01"),
        (86_399, "1970-01-01"),
        (951_782_400, "2000-02-29"),
        (1_709_164_799, "2024-02-28"),
        (1_735_689_599, "2024-12-31"),
        (4_107_542_400, "2100-03-01"),
    ] {
        assert_eq!(build::date(seconds), day);
    }
}
