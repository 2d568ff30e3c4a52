/// Which of the things that were not yet made durable are lost when power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// None: the kernel alone stopped, or everything happened to be written.
    Nothing,
    /// All of them.
    Everything,
    /// Only the one of this number.
    Only(usize),
    /// All but the one of this number.
    AllBut(usize),
    /// All from this number on.
    From(usize),
    /// Each with even odds, drawn from this seed.
    Random(u64),
}

impl Loss {
    /// Whether the thing of number `index` is lost.
    pub fn loses(self, index: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Only(lost) => index == lost,
            Self::AllBut(kept) => index != kept,
            Self::From(first) => index >= first,
            Self::Random(seed) => mix(seed ^ mix(index as u64)) & 1 == 1,
        }
    }

    /// Every single loss and every single survivor of `count` things, every prefix, and `samples` random subsets.
    pub fn choices(count: usize, samples: u64) -> impl Iterator<Item = Self> {
        let singles =
            (0..count).flat_map(|index| [Self::Only(index), Self::AllBut(index), Self::From(index)]);
        [Self::Nothing, Self::Everything].into_iter().chain(singles).chain((0..samples).map(Self::Random))
    }
}

/// The mixing function of SplitMix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
