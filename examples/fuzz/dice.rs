//! Random damage to text, the same again from the same seed.

/// xorshift64*: enough to make a mess, and the same one again from the same seed.
pub(crate) struct Dice {
    state: u64,
    seeds: &'static [&'static str],
}

impl Dice {
    /// The same seed makes the same mess; `seeds` is what it is made of.
    pub(crate) fn new(seed: u64, seeds: &'static [&'static str]) -> Self {
        let state = seed | 1;
        Self { state, seeds }
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).map_or(0, |number| number % limit.max(1))
    }

    fn seed(&mut self) -> &'static str {
        self.seeds[self.below(self.seeds.len())]
    }

    /// A text like those before it, only worse.
    pub(crate) fn mutate(&mut self, text: &str) -> String {
        let mut letters: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(4) {
            let at = self.below(letters.len() + 1);
            let to = at + self.below(letters.len() - at + 1);
            match self.below(7) {
                0 => drop(letters.drain(at..to)),
                1 => drop(letters.splice(at..at, self.seed().chars())),
                2 => drop(letters.splice(at..to, self.seed().chars())),
                3 => {
                    let again = letters[at..to].to_vec();
                    drop(letters.splice(at..at, again));
                }
                4 => {
                    let letter = char::from_u32(u32::try_from(self.below(0x11_0000)).unwrap_or(0));
                    letters.insert(at, letter.unwrap_or('\0'));
                }
                5 if at < letters.len() => {
                    let other = self.below(letters.len());
                    letters.swap(at, other);
                }
                _ => {
                    let many = 1 << self.below(10);
                    let letter = ['(', 'a', '.', '-', '"', ' '][self.below(6)];
                    drop(letters.splice(at..at, std::iter::repeat_n(letter, many)));
                }
            }
            letters.truncate(10_000);
        }
        letters.into_iter().collect()
    }
}
