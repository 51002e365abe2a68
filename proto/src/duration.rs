//! Durations in Go's notation: `24h0m0s`, `1.5h`, `.5s`, `-1m`, `1µs`, bare `0`.
//!
//! The configuration is written by Go programs and by people who know Go's rules, so the same text
//! means the same here: units are required, days do not exist, blanks are not allowed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Largest magnitude in nanoseconds, on the negative side.
const LIMIT: u64 = 1 << 63;

/// A signed duration in nanoseconds, of at most some 292 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// Syntax error of a duration. Displays the problem alone; see [`DurationError::remedy`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is empty.
    #[error("empty duration")]
    Empty,
    /// A number without a unit.
    #[error("no unit")]
    NoUnit,
    /// An unknown unit after a number.
    #[error("unknown unit {0:?}")]
    UnknownUnit(String),
    /// A missing number.
    #[error("not a duration")]
    NotANumber,
    /// Overflow of 64 bits of nanoseconds.
    #[error("out of range")]
    OutOfRange,
}

impl DurationError {
    /// Returns the remedy.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::OutOfRange => "write less than 2562047h",
            _ => "write a number and a unit of ns, us, ms, s, m or h, such as 30s, 1.5h or 2m30s",
        }
    }
}

impl GoDuration {
    /// Creates a duration of `nanos` nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Converts to the standard type; none if negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

/// Converts; durations above some 292 years become that limit.
impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (negative, mut rest) = match text.as_bytes().first() {
            None => return Err(DurationError::Empty),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        // The only number Go accepts without a unit.
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(DurationError::NotANumber);
        }
        let mut total = 0u64;
        while !rest.is_empty() {
            let (nanos, behind) = component(rest)?;
            total = total
                .checked_add(nanos)
                .filter(|total| *total <= LIMIT)
                .ok_or(DurationError::OutOfRange)?;
            rest = behind;
        }
        let nanos = if negative {
            // The smallest value has no positive counterpart, so it is negated as an unsigned
            // number.
            Some(total.wrapping_neg().cast_signed())
        } else {
            i64::try_from(total).ok()
        };
        nanos.map(Self).ok_or(DurationError::OutOfRange)
    }
}

/// Parses one number with its unit; returns its nanoseconds and the rest.
fn component(text: &str) -> Result<(u64, &str), DurationError> {
    let (whole, behind) = digits(text);
    let (fraction, behind) = match behind.strip_prefix('.') {
        Some(behind) => digits(behind),
        None => ("", behind),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::NotANumber);
    }
    let end = behind
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(behind.len());
    let (unit, behind) = behind.split_at(end);
    let unit = match unit {
        "" => return Err(DurationError::NoUnit),
        "ns" => 1,
        // The micro sign, and the Greek letter that looks the same.
        "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        other => return Err(DurationError::UnknownUnit(other.to_owned())),
    };
    let whole: u64 = match whole {
        "" => 0,
        whole => whole.parse().map_err(|_| DurationError::OutOfRange)?,
    };
    let nanos = whole
        .checked_mul(unit)
        .and_then(|nanos| nanos.checked_add(part_of(fraction, unit)))
        .filter(|nanos| *nanos <= LIMIT)
        .ok_or(DurationError::OutOfRange)?;
    Ok((nanos, behind))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Converts the digits after the point to a part of a unit. Goes through a float, as Go does, so
/// that both round the last nanosecond alike; digits beyond 63 bits are dropped.
fn part_of(fraction: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u64, 1f64);
    for digit in fraction.bytes() {
        // Go ignores further digits as well: they are below a nanosecond.
        if value > (LIMIT - 1) / 10 {
            break;
        }
        let longer = value * 10 + u64::from(digit - b'0');
        if longer > LIMIT {
            break;
        }
        value = longer;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let text = match nanos {
            // Go prints zero with a unit.
            0 => "0s".to_owned(),
            n if n < MICROSECOND => format!("{sign}{n}ns"),
            n if n < MILLISECOND => format!("{sign}{}\u{b5}s", decimal(n, MICROSECOND)),
            n if n < SECOND => format!("{sign}{}ms", decimal(n, MILLISECOND)),
            n if n < MINUTE => format!("{sign}{}s", decimal(n, SECOND)),
            n => {
                let (hours, minutes) = (n / HOUR, n / MINUTE % 60);
                let seconds = decimal(n % MINUTE, SECOND);
                match hours {
                    0 => format!("{sign}{minutes}m{seconds}s"),
                    hours => format!("{sign}{hours}h{minutes}m{seconds}s"),
                }
            }
        };
        f.pad(&text)
    }
}

/// Formats nanoseconds in this unit, with only as many decimals as needed.
fn decimal(nanos: u64, unit: u64) -> String {
    let (whole, rest) = (nanos / unit, nanos % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Every row was also put through the Go library.
    const READ: &[(&str, i64)] = &[
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("24h0m0s", 86_400_000_000_000),
        ("1.5h", 5_400_000_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("-1m", -60_000_000_000),
        ("+1m", 60_000_000_000),
        ("1us", 1_000),
        ("1\u{b5}s", 1_000),
        ("1\u{3bc}s", 1_000),
        ("1h2m3s4ms5us6ns", 3_723_004_005_006),
        ("3s1h", 3_603_000_000_000),
        ("0.000000001s", 1),
        ("0.3333333333333333333h", 1_200_000_000_000),
        ("0.9223372036854775807h", 3_320_413_933_267),
        ("0.100000000000000000000h", 360_000_000_000),
        ("9007199254740993ns", 9_007_199_254_740_993),
        ("9223372036854775807ns", i64::MAX),
        ("-9223372036854775808ns", i64::MIN),
        ("2562047h47m16.854775807s", i64::MAX),
        ("-2562047h47m16.854775808s", i64::MIN),
        ("39h9m14.425s", 140_954_425_000_000),
    ];

    #[test]
    fn durations_read_as_in_go() {
        for (text, nanos) in READ {
            assert_eq!(text.parse(), Ok(GoDuration(*nanos)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_the_reason() {
        use DurationError::*;
        for (text, reason) in [
            ("", Empty),
            ("100", NoUnit),
            ("-3", NoUnit),
            ("1.5", NoUnit),
            ("00", NoUnit),
            ("1d", UnknownUnit("d".to_owned())),
            ("1h 2m", UnknownUnit("h ".to_owned())),
            ("1 s", UnknownUnit(" s".to_owned())),
            ("1S", UnknownUnit("S".to_owned())),
            ("1hm", UnknownUnit("hm".to_owned())),
            ("1s-1s", UnknownUnit("s-".to_owned())),
            ("+", NotANumber),
            ("-", NotANumber),
            ("--1s", NotANumber),
            (".", NotANumber),
            (".s", NotANumber),
            ("-.", NotANumber),
            ("s", NotANumber),
            (" 1s", NotANumber),
            ("\u{0661}s", NotANumber),
            ("9223372036854775808ns", OutOfRange),
            ("-9223372036854775809ns", OutOfRange),
            ("2562048h", OutOfRange),
            ("99999999999999999999s", OutOfRange),
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(reason), "{text:?}");
        }
    }

    #[test]
    fn durations_print_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (86_400_000_000_000, "24h0m0s"),
            (-60_000_000_000, "-1m0s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), text);
        }
    }

    #[test]
    fn std_durations_convert_where_they_fit() {
        assert_eq!(GoDuration::from(Duration::MAX).nanos(), i64::MAX);
        assert_eq!(GoDuration(-1).to_std(), None);
        assert_eq!(GoDuration(5).to_std(), Some(Duration::from_nanos(5)));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(nanos: i64) {
            let printed = GoDuration(nanos).to_string();
            // The seconds are read through a float and keep 53 bits, plenty for nine decimals.
            prop_assert_eq!(printed.parse(), Ok(GoDuration(nanos)));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[-+]?[0-9.]{0,25}[a-zµ \
            ]{0,3}[0-9.]{0,30}[smh]?|.*") {
            if let Err(error) = text.parse::<GoDuration>() {
                prop_assert!(!error.to_string().is_empty() && !error.remedy().is_empty());
            }
        }
    }
}
