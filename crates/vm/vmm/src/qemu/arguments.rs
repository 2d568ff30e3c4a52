use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The arguments of a program, one after the other.
#[derive(Default)]
pub(super) struct Arguments(Vec<OsString>);

impl Arguments {
    /// Adds an argument without a value.
    pub(super) fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    /// Adds an option and its value.
    pub(super) fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    /// The arguments as a program gets them.
    pub(super) fn into_vec(self) -> Vec<OsString> {
        self.0
    }
}

/// A value of the form `first,key=value,key=value`.
pub(super) struct Value(Vec<u8>);

impl Value {
    /// Begins with what has no key, or with a key and its value already joined.
    pub(super) fn new(first: &str) -> Self {
        Self(first.as_bytes().to_vec())
    }

    /// Adds a key and its value, in which a comma is doubled, as QEMU asks for.
    pub(super) fn with(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.push(b',');
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        for byte in value.as_ref().as_bytes() {
            self.0.push(*byte);
            if *byte == b',' {
                self.0.push(b',');
            }
        }
        self
    }
}

impl From<Value> for OsString {
    fn from(value: Value) -> Self {
        OsString::from_vec(value.0)
    }
}

impl AsRef<OsStr> for Value {
    fn as_ref(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}
