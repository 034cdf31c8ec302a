//! Who gives an order and for which fleet, as others see it.

use cogo_registry_core::detect_location;

use crate::failure::{Failure, Kind};

/// `user@host` of whoever runs this program; the number of the user where the system gives no name.
pub(crate) fn operator() -> String {
    let named = std::env::var_os("USER").and_then(|user| user.into_string().ok()).filter(|user| !user.is_empty());
    let user = named.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", detect_location(|_| None).host).chars().take(200).collect()
}

/// The slot of the first instance of each process: a second fleet on the same database begins at another.
pub(crate) fn first_slot() -> Result<u32, Failure> {
    let Some(given) = std::env::var_os("COGO_AGENT_SLOT") else { return Ok(0) };
    let number = given.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Failure::new(Kind::Usage, "COGO_AGENT_SLOT is not a number").hint("unset it, or set it to 0"))
}
