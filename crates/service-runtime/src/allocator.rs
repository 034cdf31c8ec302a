//! The allocator of every process: a worker takes and gives back many small pieces of memory for each message.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
