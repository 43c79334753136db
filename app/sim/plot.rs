//! Plots the progress of each peer over time as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::outcome::Outcome;
use super::scenario::Who;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
/// Space for the axes.
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 16.0;

/// Draws a curve for each leecher, the ideal time as a dashed line, and the acts as marks.
#[must_use]
pub fn svg(outcome: &Outcome) -> String {
    let end = outcome.took.max(outcome.ideal).as_secs_f64().max(1e-9);
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - RIGHT);
    let y = |part: f64| HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = escape(&format!(
        "{}, seed {}: {} leechers, {:.2} x the ideal time",
        outcome.name,
        outcome.seed,
        outcome.finished.len(),
        outcome.efficiency()
    ));
    // Writing to a string cannot fail.
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>");
    for tenth in (0..=10).step_by(2) {
        let part = f64::from(tenth) / 10.0;
        let (at, right) = (y(part), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} %</text>",
            LEFT - 6.0,
            at + 4.0,
            tenth * 10
        );
    }
    for fifth in 0..=5 {
        let seconds = end * f64::from(fifth) / 5.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds:.1} s</text>",
            x(seconds),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let mut lines: BTreeMap<Who, Vec<(f64, f64)>> = BTreeMap::new();
    for (at, parts) in &outcome.progress {
        for (who, part) in parts {
            let line = lines.entry(*who).or_default();
            let point = (x(at.as_secs_f64()), y(*part));
            // A horizontal stretch is drawn by its end points.
            match line.as_mut_slice() {
                [.., (_, one), last] if *one == last.1 && last.1 == point.1 => *last = point,
                _ => line.push(point),
            }
        }
    }
    let count = lines.len().max(1);
    for (number, (who, line)) in lines.into_iter().enumerate() {
        let points: String = line.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
        let hue = 360 * number / count;
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"hsl({hue},65%,45%)\" stroke-opacity=\"0.6\" points=\"{points}\">\
             <title>{who}</title></polyline>"
        );
    }
    let ideal = x(outcome.ideal.as_secs_f64());
    let (top, bottom) = (y(1.0), y(0.0));
    let _ = writeln!(
        out,
        "<line x1=\"{ideal:.1}\" y1=\"{top}\" x2=\"{ideal:.1}\" y2=\"{bottom}\" stroke=\"black\" \
         stroke-dasharray=\"4 3\"><title>the ideal time</title></line>\
         <text x=\"{:.1}\" y=\"{:.1}\">ideal</text>",
        ideal + 4.0,
        bottom - 6.0
    );
    for (at, what) in &outcome.timeline {
        let place = x(at.as_secs_f64());
        let _ = writeln!(
            out,
            "<circle cx=\"{place:.1}\" cy=\"{bottom}\" r=\"3\" fill=\"#c00\"><title>{:.1} s: {}</title></circle>",
            at.as_secs_f64(),
            escape(what)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
