//! From where agents of level 3 may knock, before they say who they are.

use std::net::SocketAddr;

use axum::{body::Body, extract::ConnectInfo, http::Request};
use tower::ServiceExt;

use super::child_support::Parent;
use crate::ChildAccess;

async fn knock(parent: &Parent, from: &str, host: &str) -> u16 {
    let peer: SocketAddr = from.parse().unwrap();
    let mut request = Request::builder().uri("/children").header("host", host).body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    parent.children.router().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn children_are_let_in_from_where_the_settings_say() {
    // whoever is let in is told here that this is no WebSocket
    for (access, expected) in [
        (ChildAccess::Off, [404, 404, 404]),
        (ChildAccess::Local, [400, 403, 403]),
        (ChildAccess::Anywhere, [400, 400, 400]),
    ] {
        let parent = Parent::start(|settings| settings.access = access).await;
        let statuses = [
            knock(&parent, "127.0.0.1:40000", "localhost:3013").await,
            knock(&parent, "192.0.2.7:40000", "localhost:3013").await,
            // a page whose name was made to resolve to this machine
            knock(&parent, "127.0.0.1:40000", "foreign.example").await,
        ];
        assert_eq!(statuses, expected, "{access:?}");
        parent.stop().await;
    }
}

#[test]
fn setting_is_one_word() {
    for (word, expected) in
        [("off", ChildAccess::Off), ("local", ChildAccess::Local), ("anywhere", ChildAccess::Anywhere)]
    {
        assert_eq!(serde_json::from_value::<ChildAccess>(word.into()).unwrap(), expected);
    }
    assert_eq!(ChildAccess::default(), ChildAccess::Local);
}
