//! SHA-1 (FIPS 180-4, section 6.1) with the x86 SHA instructions, over one or two messages.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_extract_epi32, _mm_set_epi32, _mm_sha1msg1_epu32, _mm_sha1msg2_epu32,
    _mm_sha1nexte_epu32, _mm_sha1rnds4_epu32, _mm_xor_si128,
};
use std::array;

use crate::hash::Sha1Digest;

/// Bytes of a block, the unit by which the state advances.
const BLOCK: usize = 64;

/// One message in progress.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    state: [u32; 5],
    /// Bytes received so far.
    len: u64,
    /// The start of an incomplete block: `len % BLOCK` bytes.
    begun: [u8; BLOCK],
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0],
            len: 0,
            begun: [0; BLOCK],
        }
    }
}

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Appends the next bytes to each message.
pub(super) fn update(lanes: &mut [Lane; 2], parts: [&[u8]; 2]) {
    let [a, b] = lanes;
    let blocks = [a.begin(parts[0]), b.begin(parts[1])];
    let count = blocks[0].len().min(blocks[1].len());
    let mut states = [a.state, b.state];
    compress(&mut states, blocks.map(|blocks| &blocks[..count]));
    [a.state, b.state] = states;
    a.compress(&blocks[0][count..]);
    b.compress(&blocks[1][count..]);
}

/// Returns the digests.
pub(super) fn finish(mut lanes: [Lane; 2]) -> [Sha1Digest; 2] {
    lanes.each_mut().map(Lane::finish)
}

impl Lane {
    /// Buffers the bytes of `part` outside whole blocks, at both ends, and returns the blocks in between.
    fn begin<'p>(&mut self, part: &'p [u8]) -> &'p [[u8; BLOCK]] {
        let filled = (self.len % BLOCK as u64) as usize;
        self.len += part.len() as u64;
        let mut rest = part;
        if filled > 0 {
            let (head, tail) = part.split_at(part.len().min(BLOCK - filled));
            self.begun[filled..][..head.len()].copy_from_slice(head);
            rest = tail;
            if filled + head.len() < BLOCK {
                return &[];
            }
            let block = self.begun;
            self.compress(&[block]);
        }
        let (blocks, end) = rest.as_chunks();
        self.begun[..end.len()].copy_from_slice(end);
        blocks
    }

    fn compress(&mut self, blocks: &[[u8; BLOCK]]) {
        let mut state = [self.state];
        compress(&mut state, [blocks]);
        [self.state] = state;
    }

    /// Pads the message: a one bit, zeros, and the bit count at the end of a block. Returns the digest.
    fn finish(&mut self) -> Sha1Digest {
        let filled = (self.len % BLOCK as u64) as usize;
        let mut end = [[0; BLOCK]; 2];
        let bytes = end.as_flattened_mut();
        bytes[..filled].copy_from_slice(&self.begun[..filled]);
        bytes[filled] = 0x80;
        let count = if filled + 1 + 8 <= BLOCK { 1 } else { 2 };
        bytes[count * BLOCK - 8..count * BLOCK].copy_from_slice(&(self.len * 8).to_be_bytes());
        self.compress(&end[..count]);
        let mut digest = Sha1Digest::default();
        digest
            .as_chunks_mut()
            .0
            .copy_from_slice(&self.state.map(u32::to_be_bytes));
        digest
    }
}

/// Advances each state by its blocks; all states have the same number of blocks.
fn compress<const N: usize>(states: &mut [[u32; 5]; N], blocks: [&[[u8; BLOCK]]; N]) {
    debug_assert!(is_available());
    // SAFETY: `Sha1Pair` creates lanes only on processors with these instructions.
    #[allow(unsafe_code, reason = "what the processor has is known at run time only")]
    unsafe {
        compress_with_instructions(states, blocks);
    }
}

#[expect(
    clippy::needless_range_loop,
    reason = "what is indexed are the same places of all messages"
)]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress_with_instructions<const N: usize>(states: &mut [[u32; 5]; N], blocks: [&[[u8; BLOCK]]; N]) {
    let mut abcd: [__m128i; N] = array::from_fn(|n| words([states[n][0], states[n][1], states[n][2], states[n][3]]));
    let mut e: [__m128i; N] = array::from_fn(|n| words([states[n][4], 0, 0, 0]));
    for position in 0..blocks[0].len() {
        let (abcd_before, e_before) = (abcd, e);
        let mut schedule: [[__m128i; 4]; N] = array::from_fn(|n| load(&blocks[n][position]));
        // Four rounds for every message, then the next four: consecutive instructions do not wait for each other.
        macro_rules! rounds {
            ($function:literal: $($i:literal)*) => {$(
                for n in 0..N {
                    let w = &mut schedule[n];
                    if $i >= 4 {
                        let mixed = _mm_sha1msg1_epu32(w[$i % 4], w[($i + 1) % 4]);
                        let mixed = _mm_xor_si128(mixed, w[($i + 2) % 4]);
                        w[$i % 4] = _mm_sha1msg2_epu32(mixed, w[($i + 3) % 4]);
                    }
                    let sum = match $i {
                        0 => _mm_add_epi32(e[n], w[0]),
                        _ => _mm_sha1nexte_epu32(e[n], w[$i % 4]),
                    };
                    e[n] = abcd[n];
                    abcd[n] = _mm_sha1rnds4_epu32::<$function>(abcd[n], sum);
                }
            )*};
        }
        rounds!(0: 0 1 2 3 4);
        rounds!(1: 5 6 7 8 9);
        rounds!(2: 10 11 12 13 14);
        rounds!(3: 15 16 17 18 19);
        for n in 0..N {
            e[n] = _mm_sha1nexte_epu32(e[n], e_before[n]);
            abcd[n] = _mm_add_epi32(abcd[n], abcd_before[n]);
        }
    }
    for n in 0..N {
        states[n] = [
            _mm_extract_epi32::<3>(abcd[n]),
            _mm_extract_epi32::<2>(abcd[n]),
            _mm_extract_epi32::<1>(abcd[n]),
            _mm_extract_epi32::<0>(abcd[n]),
            _mm_extract_epi32::<3>(e[n]),
        ]
        .map(i32::cast_unsigned);
    }
}

/// Loads the words of a block, four per register.
#[inline]
#[target_feature(enable = "sse2")]
fn load(block: &[u8; BLOCK]) -> [__m128i; 4] {
    let (all, _) = block.as_chunks::<4>();
    array::from_fn(|i| words(array::from_fn(|k| u32::from_be_bytes(all[4 * i + k]))))
}

/// Packs four words, the first in the highest position, as the instructions expect.
#[inline]
#[target_feature(enable = "sse2")]
fn words(words: [u32; 4]) -> __m128i {
    let [a, b, c, d] = words.map(u32::cast_signed);
    _mm_set_epi32(a, b, c, d)
}
