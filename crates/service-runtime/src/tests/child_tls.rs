//! Parents behind a proxy that ends TLS, with a certificate of a private authority; and with a wrong one.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    PATIENCE,
    certificates::{Authority, Validity},
    child_support::{Child, Parent},
};
use crate::{ChildEvent, Ended, Trouble, TroubleKind, Trust};

const HERE: [u8; 4] = [127, 0, 0, 1];

fn server(authority: &Authority, address: [u8; 4], validity: Validity) -> Arc<ServerConfig> {
    let (certificate, key) = authority.vouch(address, validity);
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

/// Ends TLS with the certificate of the moment and carries what is in it to the parent.
async fn terminate(
    front: TcpListener,
    behind: String,
    server: watch::Receiver<Arc<ServerConfig>>,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    loop {
        let near = tokio::select! {
            () = stop.cancelled() => return,
            accepted = front.accept() => accepted.unwrap().0,
        };
        let (acceptor, behind, stop) = (TlsAcceptor::from(server.borrow().clone()), behind.clone(), stop.clone());
        tracker.spawn(async move {
            let Ok(mut near) = acceptor.accept(near).await else { return };
            let mut far = TcpStream::connect(behind).await.unwrap();
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            }
        });
    }
}

/// The proxy's address, and what changes its certificate.
async fn proxy(parent: &Parent, config: Arc<ServerConfig>) -> (String, watch::Sender<Arc<ServerConfig>>) {
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("wss://{}/children", front.local_addr().unwrap());
    let behind = parent.address.trim_start_matches("ws://").trim_end_matches("/children").to_owned();
    let (config, shown) = watch::channel(config);
    parent.tracker.spawn(terminate(front, behind, shown, parent.stop.clone()));
    (address, config)
}

async fn trouble(child: &Child) -> Trouble {
    let mut trouble = child.handle.trouble.clone();
    let told = timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.expect("there is trouble");
    told.unwrap().clone().unwrap()
}

#[tokio::test]
async fn child_connects_through_tls_with_a_private_authority() {
    let parent = Parent::start(|_| {}).await;
    let authority = Authority::new("authority of the house");
    let (address, _config) = proxy(&parent, server(&authority, HERE, Validity::Now)).await;
    let trust = Trust::authorities(authority.pem().as_bytes()).unwrap();
    let mut child = parent.child_at(&address, trust, &parent.key, |_| {});
    assert_eq!(child.next().await, ChildEvent::Connected);
    assert_eq!(*child.handle.trouble.borrow(), None);
    parent.until(child.run(), "active").await;
    child.stop.cancel();
    assert_eq!(child.ended().await, (Ended::Stopped, Vec::new()));
    parent.stop().await;
}

#[tokio::test]
async fn wrong_certificates_are_told_apart_from_absence_and_tried_again_until_given_up() {
    let parent = Parent::start(|_| {}).await;
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    // of the same name, but with another key
    let forged = Authority::new("ours");
    for (config, expected) in [
        (server(&foreign, HERE, Validity::Now), "UnknownIssuer"),
        (server(&forged, HERE, Validity::Now), "BadSignature"),
        (server(&ours, [192, 0, 2, 1], Validity::Now), "not valid for name"),
        (server(&ours, HERE, Validity::Past), "expired"),
    ] {
        let (address, _config) = proxy(&parent, config).await;
        let trust = Trust::authorities(ours.pem().as_bytes()).unwrap();
        let child = parent.child_at(&address, trust, &parent.key, |_| {});
        let seen = child.handle.trouble.clone();
        assert_eq!(child.ended().await, (Ended::GivenUp, vec![ChildEvent::HeartbeatFailed]));
        let told = seen.borrow().clone().unwrap();
        assert_eq!(told.kind, TroubleKind::Untrusted, "{told:?}");
        assert!(told.reason.contains(expected), "{told:?}");
    }
    // a private authority is none that the system trusts
    let (address, _config) = proxy(&parent, server(&ours, HERE, Validity::Now)).await;
    let stranger = parent.child_at(&address, Trust::default(), &parent.key, |_| {});
    assert_eq!(stranger.ended().await.0, Ended::GivenUp);
    assert_eq!(parent.registry.list().await.unwrap().len(), 1, "the key was sent to none of them");
    parent.stop().await;
}

#[tokio::test]
async fn child_connects_once_the_certificate_is_mended() {
    let parent = Parent::start(|_| {}).await;
    let authority = Authority::new("authority of the house");
    let (address, config) = proxy(&parent, server(&authority, HERE, Validity::Past)).await;
    let trust = Trust::authorities(authority.pem().as_bytes()).unwrap();
    let mut child = parent.child_at(&address, trust, &parent.key, |settings| settings.attempts = 1000);
    assert_eq!(trouble(&child).await.kind, TroubleKind::Untrusted);
    config.send(server(&authority, HERE, Validity::Now)).unwrap();
    assert_eq!(child.next().await, ChildEvent::Connected);
    assert_eq!(*child.handle.trouble.borrow(), None);
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn parent_that_is_not_there_is_no_matter_of_trust() {
    let parent = Parent::start(|_| {}).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("wss://{}/children", free.local_addr().unwrap());
    drop(free);
    let child = parent.child_at(&address, Trust::default(), &parent.key, |_| {});
    let seen = child.handle.trouble.clone();
    assert_eq!(child.ended().await.0, Ended::GivenUp);
    assert_eq!(seen.borrow().as_ref().unwrap().kind, TroubleKind::Unreachable);
    parent.stop().await;
}
