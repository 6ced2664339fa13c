//! Panels of lines over time, as SVG.

use std::fmt::Write;

use crate::samples::{Panel, Series};

const WIDTH: f64 = 1200.0;
const PANEL_HEIGHT: f64 = 260.0;
/// Around a panel's lines; the legend is to the right.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;
const TICKS: u32 = 5;
const COLOURS: [&str; 11] = [
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#000000",
];

/// Draws panels below one another, with one axis of time.
pub(crate) fn draw(panels: &[Panel]) -> String {
    let height = PANEL_HEIGHT * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let points = || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
    let end_s = points().map(|(at_s, _)| *at_s).fold(1.0, f64::max);
    for (number, panel) in panels.iter().enumerate() {
        Frame::new(panel, end_s, number as f64 * PANEL_HEIGHT).draw(&mut svg, panel);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where values of a panel lie in the picture.
struct Frame {
    end_s: f64,
    most: f64,
    top: f64,
}

impl Frame {
    fn new(panel: &Panel, end_s: f64, offset: f64) -> Self {
        let values = panel.series.iter().flat_map(|series| &series.points).map(|(_, value)| *value);
        Self { end_s, most: values.fold(1.0, f64::max) * 1.05, top: offset + TOP }
    }

    fn x(&self, at_s: f64) -> f64 {
        LEFT + at_s / self.end_s * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + (1.0 - value / self.most) * (PANEL_HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self, svg: &mut String, panel: &Panel) {
        text(svg, LEFT, self.top - 10.0, "start", panel.title);
        for tick in 0..=TICKS {
            let part = f64::from(tick) / f64::from(TICKS);
            let (x, y) = (self.x(part * self.end_s), self.y(part * self.most));
            line(svg, &[(LEFT, y), (WIDTH - RIGHT, y)], "#dddddd");
            line(svg, &[(x, self.y(0.0)), (x, self.y(0.0) + 4.0)], "#888888");
            text(svg, LEFT - 6.0, y + 4.0, "end", &format!("{:.*}", usize::from(self.most < 10.0), part * self.most));
            text(svg, x, self.y(0.0) + 16.0, "middle", &format!("{:.0} s", part * self.end_s));
        }
        for (number, (series, colour)) in panel.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            self.draw_series(svg, series, colour, self.top + 14.0 * number as f64);
        }
    }

    fn draw_series(&self, svg: &mut String, series: &Series, colour: &str, legend_y: f64) {
        let points: Vec<_> = series.points.iter().map(|(at_s, value)| (self.x(*at_s), self.y(*value))).collect();
        line(svg, &points, colour);
        let x = WIDTH - RIGHT + 12.0;
        line(svg, &[(x, legend_y), (x + 16.0, legend_y)], colour);
        text(svg, x + 22.0, legend_y + 4.0, "start", &series.name);
    }
}

fn line(svg: &mut String, points: &[(f64, f64)], colour: &str) {
    let mut path = String::new();
    for (x, y) in points {
        write!(path, "{x:.1},{y:.1} ").expect("text grows");
    }
    writeln!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\" points=\"{path}\"/>")
        .expect("text grows");
}

/// None of our texts has a character that XML knows.
fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>").expect("text grows");
}
