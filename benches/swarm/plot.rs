//! Chart of the ratios: CPU time of each client in each row, as a multiple of ours.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::report::{OURS, Report};
use crate::rows::{Metric, Row};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 15.0;
const HEAD: f64 = 56.0;
/// Vertical space after a row's bars.
const GAP: f64 = 16.0;
/// Ratio at which bars are cut off.
const LONGEST: f64 = 6.0;

/// Color of a client's bars.
fn color(client: &str) -> &'static str {
    match client {
        OURS => "#d1495b",
        "lower-bound" => "#b8b8b8",
        "libtorrent" => "#30638e",
        "rqbit" => "#edae49",
        "aria2" => "#3d9970",
        _ => "#7b5ea7",
    }
}

/// Draws the rows that have CPU figures.
pub fn write(report: &Report, path: Option<&Path>) -> Result<(), String> {
    let Some(path) = path else {
        return Ok(());
    };
    fs::write(path, draw(report)).map_err(|error| format!("{}: {error}", path.display()))
}

fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for row in report.rows {
        let Some(ours) = report.median(row, OURS, Metric::Cpu) else {
            continue;
        };
        draw_row(report, row, ours, &mut y, &mut body);
    }
    let unit = (WIDTH - LEFT - 90.0) / LONGEST;
    let line = LEFT + unit;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="12" y="22" font-size="15">CPU seconds for each GiB, as a multiple of ecs-torrent's</text>
<text x="12" y="40" fill="#666">{}</text>
<line x1="{line}" x2="{line}" y1="{HEAD}" y2="{y}" stroke="#d1495b" stroke-dasharray="3 3"/>
{body}</svg>
"##,
        report.title()
    )
}

fn draw_row(report: &Report, row: &Row, ours: f64, y: &mut f64, body: &mut String) {
    let unit = (WIDTH - LEFT - 90.0) / LONGEST;
    let _ = writeln!(
        body,
        r#"<text x="12" y="{}" font-weight="bold">{}</text>"#,
        *y + BAR - 3.0,
        row.name
    );
    for client in report.clients(row) {
        let Some(median) = report.median(row, client, Metric::Cpu) else {
            continue;
        };
        let ratio = median / ours;
        let width = ratio.min(LONGEST) * unit;
        let (text_y, height) = (*y + BAR - 3.0, BAR - 2.0);
        let _ = writeln!(
            body,
            r##"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{height}" fill="{}"/>
<text x="{:.1}" y="{text_y}">{client} {ratio:.2} <tspan fill="#666">({median:.2} s)</tspan></text>"##,
            color(client),
            LEFT + width + 5.0,
        );
        *y += BAR;
    }
    *y += GAP;
}
