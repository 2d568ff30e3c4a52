//! The messages and framing between host and guest agent.
#![forbid(unsafe_code)]
