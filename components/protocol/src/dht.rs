//! A node of the DHT, by which peers find each other without a tracker (BEP 5 and its extensions), sans-I/O: functions
//! take datagrams, addresses, `now` and a random number generator, and return values.
//!
//! | module | holds |
//! |---|---|
//! | [`krpc`] | the messages (BEP 5, 32, 33, 42, 43, 44, 51) |
//! | [`id`] | node ids and distances, ids that fit an address (BEP 42) |
//! | [`table`] | the routing table (BEP 5) |
//! | [`token`] | tokens, which prove that an announcing host owns its address (BEP 5) |
//! | [`peers`], [`bloom`] | stored peers, their bloom filters (BEP 33), samples (BEP 51) |
//! | [`items`] | stored items (BEP 44) |
//! | [`node`] | a whole node: answering, searching, upkeep, saving |
//! | [`lookup`] | iterative lookups (BEP 5) |
//! | [`limits`] | the rate of queries per address and the size of answers |

pub mod bloom;
pub mod id;
pub mod items;
pub mod krpc;
pub mod limits;
pub mod lookup;
pub mod node;
pub mod peers;
pub mod table;
pub mod token;
