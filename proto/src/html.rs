//! The look of the pages for browsers, shared by the agent's admin and the manager: no script, no
//! external resource, every text escaped. Tables turn into blocks on narrow screens.

use std::fmt::Write as _;

use crate::printable::printable;

/// Value of the header `content-security-policy` of every page: nothing is loaded from anywhere, and
/// should a text ever pass unescaped, it can do nothing.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--line:#ddd;--head:#f4f6f8;--link:#0b57a4;--good:#136c2e;--bad:#a3262a;--dim:#666}\n\
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181b;--line:#3a3f45;--head:#22262b;--link:#7db7f5;--good:#6fcf8a;--bad:#ff8a85;--dim:#a0a0a0}}\n\
body{font-family:sans-serif;line-height:1.4;margin:1.5em auto;padding:0 1.5em;max-width:80em;color:var(--ink);background:var(--paper)}\n\
a{color:var(--link)}h1{font-size:1.3em}h2{font-size:1.1em;margin:1.6em 0 .4em}small,.dim{color:var(--dim);font-weight:normal}\n\
nav{border-bottom:1px solid var(--line);padding-bottom:.5em}nav b{margin-right:1.2em}nav a{margin-right:1em;display:inline-block}\n\
table{border-collapse:collapse;margin:.5em 0 1em;width:100%}th,td{text-align:left;padding:.4em .8em;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\n\
th{background:var(--head);white-space:nowrap;overflow-wrap:normal}th.n{white-space:normal}.n{text-align:right;font-variant-numeric:tabular-nums}code{font-family:monospace}\n\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1.2em;margin:1em 0}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}\n\
.yes,.no{font-weight:bold;white-space:nowrap}.yes{color:var(--good)}.no{color:var(--bad)}\n\
form{margin:0;display:inline}label{display:inline-block;margin:.2em .8em .2em 0}input,select,button{font:inherit;padding:.2em .5em;max-width:100%;box-sizing:border-box}\n\
button{cursor:pointer}button.danger{color:#fff;background:#a3262a;border:1px solid #7c1a1d;border-radius:3px}\n\
@media (max-width:640px){body{padding:0 .8em;margin:.8em auto}tr:has(th){display:none}table,tbody,tr,td{display:block}td.n{text-align:left}\n\
tr{border:1px solid var(--line);border-radius:4px;margin:.6em 0}td{border:0;padding:.25em .7em}td[title]::before{content:attr(title) ': ';color:var(--dim)}td:empty{display:none}}\n";

/// Head of every page of a program.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Name of the program.
    pub program: &'static str,
    /// Paths and names of its pages.
    pub pages: &'static [(&'static str, &'static str)],
}

impl Site {
    /// Renders a page; one with `refresh` is loaded anew after so many seconds.
    #[must_use]
    pub fn page(&self, title: &str, refresh: Option<u32>, body: &str) -> String {
        let title = escape(title);
        let mut head = String::new();
        if let Some(seconds) = refresh {
            let _ = writeln!(head, "<meta http-equiv='refresh' content='{seconds}'>");
        }
        let links = self
            .pages
            .iter()
            .map(|(path, name)| format!("<a href='{path}'>{name}</a>"))
            .collect::<String>();
        format!(
            "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n\
            <meta name='viewport' content='width=device-width, initial-scale=1'>\n{head}\
            <link rel='icon' href='data:,'>\n<title>{title} · {program}</title>\n\
            <style>\n{STYLE}</style>\n</head>\n<body>\n<nav><b>{program}</b>{links}</nav>\n\
            <h1>{title}</h1>\n<main>\n{body}</main>\n</body>\n</html>\n",
            program = self.program,
        )
    }
}

/// Escapes text for elements and quoted attributes. What could steer a terminal or turn the direction
/// of writing is shown as in a log.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Markup, which may be put into a page as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(pub String);

impl Html {
    /// A text of any origin.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self(escape(text))
    }

    /// A text in the typeface of programs.
    #[must_use]
    pub fn code(text: &str) -> Self {
        Self(format!("<code>{}</code>", escape(text)))
    }

    /// A word that says that something is well, or that it is not.
    #[must_use]
    pub fn verdict(is_well: bool, word: &str) -> Self {
        let class = if is_well { "yes" } else { "no" };
        Self(format!("<span class='{class}'>{}</span>", escape(word)))
    }

    /// Pieces with a line for each.
    #[must_use]
    pub fn lines(pieces: &[Self]) -> Self {
        let pieces: Vec<_> = pieces.iter().map(|piece| piece.0.as_str()).collect();
        Self(pieces.join("<br>"))
    }
}

impl From<u64> for Html {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

/// A table under construction.
#[derive(Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: String,
}

/// Heading of a column; numbers stand at its right.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Texts.
    Text(&'static str),
    /// Numbers.
    Number(&'static str),
}

impl<const N: usize> Table<N> {
    /// Begins a table.
    #[must_use]
    pub const fn new(columns: [Column; N]) -> Self {
        Self {
            columns,
            rows: String::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [Html; N]) {
        self.rows.push_str("<tr>");
        for (column, Html(cell)) in self.columns.iter().zip(cells) {
            // On narrow screens the heading stands before each value.
            let _ = match column {
                Column::Text(name) => write!(self.rows, "<td title='{name}'>{cell}</td>"),
                Column::Number(name) => {
                    write!(self.rows, "<td class='n' title='{name}'>{cell}</td>")
                }
            };
        }
        self.rows.push_str("</tr>\n");
    }

    /// Renders it; `nothing` stands for a table without rows.
    #[must_use]
    pub fn or(self, nothing: &str) -> String {
        if self.rows.is_empty() {
            return format!("<p>{}</p>\n", escape(nothing));
        }
        let heads = self.columns.map(|column| match column {
            Column::Text(name) => format!("<th>{name}</th>"),
            Column::Number(name) => format!("<th class='n'>{name}</th>"),
        });
        format!(
            "<table>\n<tr>{}</tr>\n{}</table>\n",
            heads.concat(),
            self.rows
        )
    }
}

/// Renders facts with their names.
#[must_use]
pub fn facts<const N: usize>(facts: [(&str, Html); N]) -> String {
    let rows = facts.map(|(name, Html(value))| format!("<dt>{name}</dt><dd>{value}</dd>\n"));
    format!("<dl>\n{}</dl>\n", rows.concat())
}

/// Formats a time span by its two largest units.
#[must_use]
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_neither_markup_nor_a_trick_of_writing() {
        assert_eq!(
            escape("<b onclick=\"x\">&'\u{202e}\n"),
            "&lt;b onclick=&quot;x&quot;&gt;&amp;&#39;\\u{202e}\\n"
        );
    }

    #[test]
    fn cells_carry_their_heading_for_narrow_screens_and_no_rows_are_a_sentence() {
        let columns = [Column::Text("Name"), Column::Number("Hits")];
        let mut table = Table::new(columns);
        table.row([Html::text("<a>"), Html::from(3)]);
        let shown = table.or("Nothing");
        assert!(
            shown.contains("<td title='Name'>&lt;a&gt;</td><td class='n' title='Hits'>3</td>"),
            "{shown}"
        );
        assert_eq!(Table::new(columns).or("Nothing"), "<p>Nothing</p>\n");
    }

    #[test]
    fn a_page_refreshes_itself_without_a_script() {
        let site = Site {
            program: "traffic-x",
            pages: &[("/", "index")],
        };
        let page = site.page("A <title>", Some(5), "");
        assert!(page.contains("<meta http-equiv='refresh' content='5'>"));
        assert!(page.contains("<h1>A &lt;title&gt;</h1>"), "{page}");
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        for (seconds, text) in [
            (9, "9 s"),
            (61, "1 min 1 s"),
            (7_260, "2 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
