//! What nodes send to each other. A message that is decoded is the same after a round trip.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_wire::codec;
use quorate_node::peer_wire::{PeerReply, PeerRequest};

fuzz_target!(|data: &[u8]| {
    let frame = Bytes::copy_from_slice(data);
    if let Ok(request) = codec::decode::<PeerRequest>(&frame) {
        let again: PeerRequest = codec::decode(&codec::encode(&request)).expect("an encoded request");
        assert_eq!(again, request);
    }
    if let Ok(reply) = codec::decode::<PeerReply>(&frame) {
        let again: PeerReply = codec::decode(&codec::encode(&reply)).expect("an encoded reply");
        assert_eq!(again, reply);
    }
});
