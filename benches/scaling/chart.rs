//! Draws panels with logarithmic axes as an SVG that is legible on light and dark backgrounds.

use std::fmt::Write;

/// The size of the plot of a panel in pixels, and the margins for labels.
const PLOT_WIDTH: f64 = 260.0;
const PLOT_HEIGHT: f64 = 220.0;
const MARGIN_TOP: f64 = 34.0;
const MARGIN_BOTTOM: f64 = 44.0;
const MARGIN_LEFT: f64 = 56.0;
const MARGIN_RIGHT: f64 = 84.0;

/// The line colours have contrast to both backgrounds; the greys follow the colour scheme.
const STYLESHEET: &str = "
text { font: 12px sans-serif; fill: #57606a }
.title { font-weight: bold }
.grid { stroke: #d0d7de; stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
.c0 { stroke: #1f77d0 } .c1 { stroke: #d9730d } .c2 { stroke: #2e9e4f }
@media (prefers-color-scheme: dark) {
text { fill: #9da7b1 } .grid { stroke: #30363d }
}
";

/// A plot with its own vertical axis.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// Formats a label of the vertical axis.
    pub(crate) format_value: fn(f64) -> String,
    pub(crate) series: Vec<Series>,
}

/// A line of (operations, value) points.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A logarithmic axis from one power of ten to another.
struct Axis {
    min_power: f64,
    max_power: f64,
    length_px: f64,
}

pub(crate) fn draw_svg(panels: &[Panel]) -> String {
    let panel_width = MARGIN_LEFT + PLOT_WIDTH + MARGIN_RIGHT;
    let (width, height) = (
        panel_width * to_f64(panels.len()),
        MARGIN_TOP + PLOT_HEIGHT + MARGIN_BOTTOM,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n<style>{STYLESHEET}</style>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let left = panel_width * to_f64(number) + MARGIN_LEFT;
        writeln!(svg, "<g transform=\"translate({left} {MARGIN_TOP})\">")
            .expect(STRING_WRITE_IS_INFALLIBLE);
        panel.draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Formats a number with the suffix `k` or `M`.
pub(crate) fn format_count(operations: usize) -> String {
    match operations {
        1_000_000.. => format!("{} M", operations / 1_000_000),
        1_000.. => format!("{} k", operations / 1_000),
        few => few.to_string(),
    }
}

/// Converts a number that fits into 32 bits; larger ones saturate.
pub(crate) fn to_f64(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

const STRING_WRITE_IS_INFALLIBLE: &str = "writing to a string never fails";

// === impl Panel ===

impl Panel {
    fn draw(&self, svg: &mut String) {
        let x_axis = Axis::from_values(self.points().map(|(x, _)| x), PLOT_WIDTH);
        let y_axis = Axis::from_values(self.points().map(|(_, y)| y), PLOT_HEIGHT);
        write_text(svg, 0.0, -16.0, "start", "title", self.title);
        write_text(
            svg,
            PLOT_WIDTH / 2.0,
            PLOT_HEIGHT + 36.0,
            "middle",
            "",
            "operations",
        );
        for power in x_axis.powers() {
            let x = x_axis.position(10_f64.powi(power));
            write_line(svg, (x, 0.0), (x, PLOT_HEIGHT));
            let label = format_count(10_usize.pow(power.unsigned_abs()));
            write_text(svg, x, PLOT_HEIGHT + 18.0, "middle", "", &label);
        }
        for power in y_axis.powers() {
            for step in y_axis.tick_steps() {
                let value = f64::from(*step) * 10_f64.powi(power);
                let y = PLOT_HEIGHT - y_axis.position(value);
                // The steps above the last power are outside of the plot.
                if y > -0.5 {
                    write_line(svg, (0.0, y), (PLOT_WIDTH, y));
                    write_text(svg, -8.0, y + 4.0, "end", "", &(self.format_value)(value));
                }
            }
        }
        for (number, series) in self.series.iter().enumerate() {
            let position =
                |&(x, y): &(f64, f64)| (x_axis.position(x), PLOT_HEIGHT - y_axis.position(y));
            let path: Vec<String> = series
                .points
                .iter()
                .map(position)
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            writeln!(
                svg,
                "<polyline class=\"line c{number}\" points=\"{}\"/>",
                path.join(" ")
            )
            .expect(STRING_WRITE_IS_INFALLIBLE);
            if let Some((x, y)) = series.points.last().map(position) {
                write_text(svg, x + 8.0, y + 4.0, "start", "", series.name);
            }
        }
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series
            .iter()
            .flat_map(|series| &series.points)
            .copied()
    }
}

// === impl Axis ===

impl Axis {
    /// Spans from the power of ten below the minimum to the one above the maximum.
    fn from_values(values: impl Iterator<Item = f64>, length_px: f64) -> Self {
        let (min, max) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(min, max), value| {
            (min.min(value), max.max(value))
        });
        let min_power = min.log10().floor();
        let max_power = max.log10().ceil().max(min_power + 1.0);
        Self {
            min_power,
            max_power,
            length_px,
        }
    }

    fn position(&self, value: f64) -> f64 {
        (value.log10() - self.min_power) / (self.max_power - self.min_power) * self.length_px
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the values are small integers"
    )]
    fn powers(&self) -> std::ops::RangeInclusive<i32> {
        self.min_power as i32..=self.max_power as i32
    }

    /// Returns the labelled multiples of each power of ten: more if the axis is short.
    fn tick_steps(&self) -> &'static [u8] {
        if self.max_power - self.min_power < 1.5 {
            &[1, 2, 3, 4, 5, 7]
        } else {
            &[1]
        }
    }
}

fn write_line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(
        svg,
        "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    )
    .expect(STRING_WRITE_IS_INFALLIBLE);
}

fn write_text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    )
    .expect(STRING_WRITE_IS_INFALLIBLE);
}
