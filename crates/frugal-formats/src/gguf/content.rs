//! Where the bytes of tensors lie: in one file, or in the parts of a split model.

/// The files that a [`Gguf`](super::Gguf) was read from, by number.
pub trait Content {
    /// The whole file that is part `index`, counted from 0.
    fn part(&self, index: usize) -> Option<&[u8]>;
}

impl Content for [u8] {
    fn part(&self, index: usize) -> Option<&[u8]> {
        (index == 0).then_some(self)
    }
}

impl Content for Vec<u8> {
    fn part(&self, index: usize) -> Option<&[u8]> {
        self.as_slice().part(index)
    }
}

/// All parts of a model, in order.
#[derive(Clone, Debug)]
pub struct Parts<B>(pub Vec<B>);

impl<B: AsRef<[u8]>> Content for Parts<B> {
    fn part(&self, index: usize) -> Option<&[u8]> {
        self.0.get(index).map(AsRef::as_ref)
    }
}
