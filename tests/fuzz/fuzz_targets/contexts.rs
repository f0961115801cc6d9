//! Contexts as clients send them back. What is opened is the same after it was sealed again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_client::ids::ClusterId;
use quorate_node::core::version::Context;

const CLUSTER: ClusterId = ClusterId(1);
const KEY: &[u8] = b"key";

fuzz_target!(|data: &[u8]| {
    if let Ok(context) = Context::open(&Bytes::copy_from_slice(data), CLUSTER, KEY) {
        let again = Context::open(&context.seal(CLUSTER, KEY), CLUSTER, KEY).expect("a sealed context");
        assert_eq!(again, context);
    }
});
