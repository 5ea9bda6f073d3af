//! A picture of what was measured: panels side by side, both axes logarithmic,
//! as an SVG that is legible on white and on black. Measures nothing.

use std::fmt::Write;

/// The plane of a panel, and what is around it: labels below and at both sides.
const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 220.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 44.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 84.0;

/// Colours of the middle, which stand out from white and from black; the greys
/// follow what the reader prefers.
const STYLE: &str = "
text { font: 12px sans-serif; fill: #57606a }
.title { font-weight: bold }
.grid { stroke: #d0d7de; stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
.c0 { stroke: #1f77d0 } .c1 { stroke: #d9730d } .c2 { stroke: #2e9e4f }
@media (prefers-color-scheme: dark) {
text { fill: #9da7b1 } .grid { stroke: #30363d }
}
";

/// One plane with its own vertical axis.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// How a value is told.
    pub(crate) label: fn(f64) -> String,
    pub(crate) series: Vec<Series>,
}

/// A line: numbers of operations, and what each costs.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// An axis: from which to which power of ten, over so many pixels.
struct Axis {
    from: f64,
    to: f64,
    pixels: f64,
}

pub(crate) fn draw(panels: &[Panel]) -> String {
    let each = LEFT + WIDTH + RIGHT;
    let (width, height) = (each * float(panels.len()), ABOVE + HEIGHT + BELOW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n<style>{STYLE}</style>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let left = each * float(number) + LEFT;
        writeln!(svg, "<g transform=\"translate({left} {ABOVE})\">").expect(WRITTEN);
        panel.draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// A number of operations, in short.
pub(crate) fn count(operations: usize) -> String {
    match operations {
        1_000_000.. => format!("{} M", operations / 1_000_000),
        1_000.. => format!("{} k", operations / 1_000),
        few => few.to_string(),
    }
}

/// Numbers here are far below those that a float cannot hold.
pub(crate) fn float(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

const WRITTEN: &str = "a string can be written to";

// === impl Panel ===

impl Panel {
    fn draw(&self, svg: &mut String) {
        let across = Axis::over(self.points().map(|(x, _)| x), WIDTH);
        let up = Axis::over(self.points().map(|(_, y)| y), HEIGHT);
        text(svg, 0.0, -16.0, "start", "title", self.title);
        text(svg, WIDTH / 2.0, HEIGHT + 36.0, "middle", "", "operations");
        for power in across.powers() {
            let x = across.place(10_f64.powi(power));
            line(svg, (x, 0.0), (x, HEIGHT));
            let label = count(10_usize.pow(power.unsigned_abs()));
            text(svg, x, HEIGHT + 18.0, "middle", "", &label);
        }
        for power in up.powers() {
            for step in up.steps() {
                let value = f64::from(*step) * 10_f64.powi(power);
                let y = HEIGHT - up.place(value);
                // The last power has no steps above it.
                if -0.5 < y {
                    line(svg, (0.0, y), (WIDTH, y));
                    text(svg, -8.0, y + 4.0, "end", "", &(self.label)(value));
                }
            }
        }
        for (number, series) in self.series.iter().enumerate() {
            let place = |&(x, y): &(f64, f64)| (across.place(x), HEIGHT - up.place(y));
            let path: Vec<String> = series
                .points
                .iter()
                .map(place)
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            writeln!(
                svg,
                "<polyline class=\"line c{number}\" points=\"{}\"/>",
                path.join(" ")
            )
            .expect(WRITTEN);
            if let Some((x, y)) = series.points.last().map(place) {
                text(svg, x + 8.0, y + 4.0, "start", "", series.name);
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
    /// From the power of ten below the least to the one above the most.
    fn over(values: impl Iterator<Item = f64>, pixels: f64) -> Self {
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let from = least.log10().floor();
        let to = most.log10().ceil().max(from + 1.0);
        Self { from, to, pixels }
    }

    fn place(&self, value: f64) -> f64 {
        (value.log10() - self.from) / (self.to - self.from) * self.pixels
    }

    #[expect(clippy::cast_possible_truncation, reason = "they are whole and small")]
    fn powers(&self) -> std::ops::RangeInclusive<i32> {
        self.from as i32..=self.to as i32
    }

    /// What is labelled within a power: more if there are few powers.
    fn steps(&self) -> &'static [u8] {
        if self.to - self.from < 1.5 {
            &[1, 2, 3, 4, 5, 7]
        } else {
            &[1]
        }
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(
        svg,
        "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    )
    .expect(WRITTEN);
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    )
    .expect(WRITTEN);
}
