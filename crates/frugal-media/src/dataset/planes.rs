//! Images as CIFAR's files have them: 32 x 32 pixels, channel by channel.

use crate::picture::Picture;

/// Bytes of an image.
pub(super) const BYTES: u64 = 3072;
const SIDE: usize = 32;

/// The image of 3072 bytes.
pub(super) fn picture(bytes: &[u8]) -> Option<Picture> {
    let plane = SIDE * SIDE;
    if bytes.len() != 3 * plane {
        return None;
    }
    let pixel = |i: usize| [bytes[i], bytes[plane + i], bytes[2 * plane + i]];
    Picture::new(SIDE, SIDE, (0..plane).flat_map(pixel).collect())
}
