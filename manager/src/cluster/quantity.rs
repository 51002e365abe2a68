//! Kubernetes' notation for sizes, as far as settings use it.

/// A whole number of bytes: `4Mi`, `500k`, `1e6`, `1048576`.
pub(crate) fn bytes(text: &str) -> Option<usize> {
    const SUFFIXES: [(&str, f64); 11] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("m", 1e-3),
        ("u", 1e-6),
        ("n", 1e-9),
    ];
    let text = text.trim();
    let suffix = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (digits, factor) = suffix.unwrap_or((text, 1.0));
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b".+-eE".contains(&byte));
    let number: f64 = plain.then(|| digits.parse().ok())??;
    let bytes = (number * factor).ceil();
    // Sizes of messages; whoever wants more than the largest integer a float holds is mistaken.
    (0.0..=9e15).contains(&bytes).then_some(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, size) in [
            ("4Mi", Some(4 << 20)),
            ("1Ki", Some(1024)),
            ("500k", Some(500_000)),
            ("1e6", Some(1_000_000)),
            ("1.5Mi", Some(1_572_864)),
            ("12", Some(12)),
            ("0", Some(0)),
            ("-1", None),
            ("inf", None),
            ("much", None),
            ("", None),
            ("1e99", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }
}
