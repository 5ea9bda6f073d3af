//! Deterministic random mutations of text.

/// Mutates texts with a xorshift64* generator. The same seed gives the same
/// mutations.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    fragments: &'static [&'static str],
}

impl Mutator {
    /// Creates a mutator that inserts `fragments`.
    pub fn new(seed: u64, fragments: &'static [&'static str]) -> Self {
        // The state must not be 0.
        let state = seed | 1;
        Self { state, fragments }
    }

    /// Returns a random number below `limit`, or 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).map_or(0, |number| number % limit.max(1))
    }

    fn pick_fragment(&mut self) -> &'static str {
        self.fragments[self.below(self.fragments.len())]
    }

    /// Applies one to four random mutations. The result has at most 10,000 chars.
    pub fn mutate(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(4) {
            let start = self.below(chars.len() + 1);
            let end = start + self.below(chars.len() - start + 1);
            match self.below(7) {
                0 => drop(chars.drain(start..end)),
                1 => drop(chars.splice(start..start, self.pick_fragment().chars())),
                2 => drop(chars.splice(start..end, self.pick_fragment().chars())),
                3 => {
                    let repeated = chars[start..end].to_vec();
                    drop(chars.splice(start..start, repeated));
                }
                4 => {
                    let letter = char::from_u32(u32::try_from(self.below(0x11_0000)).unwrap_or(0));
                    chars.insert(start, letter.unwrap_or('\0'));
                }
                5 if start < chars.len() => {
                    let other = self.below(chars.len());
                    chars.swap(start, other);
                }
                _ => {
                    let count = 1 << self.below(10);
                    let letter = ['(', 'a', '.', '-', '"', ' '][self.below(6)];
                    drop(chars.splice(start..start, std::iter::repeat_n(letter, count)));
                }
            }
            chars.truncate(10_000);
        }
        chars.into_iter().collect()
    }
}
