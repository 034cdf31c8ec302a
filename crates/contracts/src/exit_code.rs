//! Exit codes by which a process tells whoever supervises it more than "it failed".

/// Another process owns the slot of this one: starting it again would only take the slot away from the other, in turns.
pub const SUPERSEDED: u8 = 79;
