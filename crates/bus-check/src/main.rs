//! One client of the bus in a process of its own, told by its standard input what to do.

use anyhow::Result;

fn main() -> Result<()> {
    cogo_bus_check::run_actor()
}
