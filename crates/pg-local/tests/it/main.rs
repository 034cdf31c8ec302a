//! A private Postgres on this machine: started, attached to, killed, healed, stopped.

mod crash;
mod lifecycle;
mod refusal;
mod support;
