//! The checker on histories made by hand: right ones pass, and each promise is seen to be broken.

mod broken;
mod broken_content;
mod broken_context;
mod right;
mod script;
