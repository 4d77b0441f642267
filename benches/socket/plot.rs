//! Lines over a logarithmic axis, as SVG, for the README.

use std::fmt::Write as _;

/// A line and its points.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) color: &'a str,
    pub(crate) points: &'a [(f64, f64)],
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// The picture. Every line has the same x; y starts at 0.
pub(crate) fn svg(title: &str, x_axis: &str, y_axis: &str, lines: &[Line<'_>]) -> String {
    let xs: Vec<f64> = lines[0].points.iter().map(|(x, _)| *x).collect();
    let (least, most) = (xs[0].ln(), xs[xs.len() - 1].ln());
    let top = lines.iter().flat_map(|line| line.points).map(|(_, y)| *y).fold(0.0, f64::max);
    let step = step(top);
    let top = (top / step).ceil() * step;
    let x = |value: f64| LEFT + (value.ln() - least) / (most - least) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
        writeln!(svg, "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{text}</text>").unwrap();
    };
    text(LEFT, 20.0, "start", title);
    text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "middle", x_axis);
    text(LEFT, TOP - 8.0, "end", y_axis);
    for value in &xs {
        text(x(*value), HEIGHT - BOTTOM + 18.0, "middle", &format!("{value}"));
    }
    let marks = (0..=(top / step).round() as u32).map(|mark| f64::from(mark) * step);
    for mark in marks.clone() {
        text(LEFT - 8.0, y(mark) + 4.0, "end", &thousands(mark));
    }
    for line in lines {
        let (at, last) = line.points[line.points.len() - 1];
        text(x(at) + 8.0, y(last) + 4.0, "start", line.name);
    }
    for mark in marks {
        let (y, right) = (y(mark), WIDTH - RIGHT);
        writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>").unwrap();
    }
    for Line { color, points, .. } in lines {
        let path: Vec<_> =
            points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        let path = path.join(" ");
        writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>")
            .unwrap();
    }
    svg + "</svg>\n"
}

/// A round distance of the marks: four to nine of them.
fn step(top: f64) -> f64 {
    let power = 10_f64.powf((top / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| top / step <= 6.0).unwrap()
}

fn thousands(value: f64) -> String {
    if value >= 1_000.0 { format!("{}k", value / 1_000.0) } else { format!("{value}") }
}
