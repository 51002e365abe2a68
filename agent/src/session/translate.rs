//! A manager snapshot to a route table and the reviews to send back.
