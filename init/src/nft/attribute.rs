//! Numbers of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`: message types and
//! the attributes of each object, by the kernel's names.

/// Subsystem of nf_tables, in the upper byte of a message type.
const NF_TABLES: u16 = 10 << 8;

pub(crate) const NEW_TABLE: u16 = NF_TABLES;
pub(crate) const GET_TABLE: u16 = NF_TABLES | 1;
pub(crate) const DELETE_TABLE: u16 = NF_TABLES | 2;
pub(crate) const NEW_CHAIN: u16 = NF_TABLES | 3;
pub(crate) const GET_CHAIN: u16 = NF_TABLES | 4;
pub(crate) const DELETE_CHAIN: u16 = NF_TABLES | 5;
pub(crate) const NEW_RULE: u16 = NF_TABLES | 6;
pub(crate) const GET_RULE: u16 = NF_TABLES | 7;
pub(crate) const DELETE_RULE: u16 = NF_TABLES | 8;
pub(crate) const GET_GENERATION: u16 = NF_TABLES | 16;
pub(crate) const BATCH_BEGIN: u16 = 16;
pub(crate) const BATCH_END: u16 = 17;

/// `NFNL_BATCH_GENID`.
pub(crate) const BATCH_GENERATION: u16 = 1;
/// `NFTA_GEN_ID`.
pub(crate) const GENERATION_ID: u16 = 1;

/// `NFTA_TABLE_NAME`.
pub(crate) const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`.
pub(crate) const TABLE_FLAGS: u16 = 2;

/// `NFTA_CHAIN_TABLE`.
pub(crate) const CHAIN_TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`.
pub(crate) const CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_HOOK`.
pub(crate) const CHAIN_HOOK: u16 = 4;
/// `NFTA_CHAIN_TYPE`.
pub(crate) const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_HOOKNUM`.
pub(crate) const HOOK_NUMBER: u16 = 1;
/// `NFTA_HOOK_PRIORITY`.
pub(crate) const HOOK_PRIORITY: u16 = 2;

/// `NFTA_RULE_TABLE`.
pub(crate) const RULE_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
pub(crate) const RULE_CHAIN: u16 = 2;
/// `NFTA_RULE_HANDLE`.
pub(crate) const RULE_HANDLE: u16 = 3;
/// `NFTA_RULE_EXPRESSIONS`.
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_RULE_USERDATA`.
pub(crate) const RULE_USERDATA: u16 = 7;

/// `NFTA_LIST_ELEM`.
pub(crate) const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`.
pub(crate) const EXPRESSION_NAME: u16 = 1;
/// `NFTA_EXPR_DATA`.
pub(crate) const EXPRESSION_DATA: u16 = 2;

/// `NFTA_DATA_VALUE`.
pub(crate) const DATA_VALUE: u16 = 1;
/// `NFTA_DATA_VERDICT`.
pub(crate) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`.
pub(crate) const VERDICT_CODE: u16 = 1;
/// `NFTA_VERDICT_CHAIN`.
pub(crate) const VERDICT_CHAIN: u16 = 2;

/// `NFTA_META_DREG`.
pub(crate) const META_DESTINATION: u16 = 1;
/// `NFTA_META_KEY`.
pub(crate) const META_KEY: u16 = 2;

/// `NFTA_PAYLOAD_DREG`.
pub(crate) const PAYLOAD_DESTINATION: u16 = 1;
/// `NFTA_PAYLOAD_BASE`.
pub(crate) const PAYLOAD_BASE: u16 = 2;
/// `NFTA_PAYLOAD_OFFSET`.
pub(crate) const PAYLOAD_OFFSET: u16 = 3;
/// `NFTA_PAYLOAD_LEN`.
pub(crate) const PAYLOAD_LENGTH: u16 = 4;

/// `NFTA_CMP_SREG`.
pub(crate) const COMPARE_SOURCE: u16 = 1;
/// `NFTA_CMP_OP`.
pub(crate) const COMPARE_OPERATION: u16 = 2;
/// `NFTA_CMP_DATA`.
pub(crate) const COMPARE_DATA: u16 = 3;

/// `NFTA_BITWISE_SREG`.
pub(crate) const BITWISE_SOURCE: u16 = 1;
/// `NFTA_BITWISE_DREG`.
pub(crate) const BITWISE_DESTINATION: u16 = 2;
/// `NFTA_BITWISE_LEN`.
pub(crate) const BITWISE_LENGTH: u16 = 3;
/// `NFTA_BITWISE_MASK`.
pub(crate) const BITWISE_MASK: u16 = 4;
/// `NFTA_BITWISE_XOR`.
pub(crate) const BITWISE_XOR: u16 = 5;

/// `NFTA_FIB_DREG`.
pub(crate) const FIB_DESTINATION: u16 = 1;
/// `NFTA_FIB_RESULT`.
pub(crate) const FIB_RESULT: u16 = 2;
/// `NFTA_FIB_FLAGS`.
pub(crate) const FIB_FLAGS: u16 = 3;

/// `NFTA_MATCH_NAME`, and `NFTA_TARGET_NAME`.
pub(crate) const EXTENSION_NAME: u16 = 1;
/// `NFTA_MATCH_INFO`.
pub(crate) const EXTENSION_INFO: u16 = 3;

/// `NFTA_SOCKET_KEY`.
pub(crate) const SOCKET_KEY: u16 = 1;
/// `NFTA_SOCKET_DREG`.
pub(crate) const SOCKET_DESTINATION: u16 = 2;

/// `NFTA_IMMEDIATE_DREG`.
pub(crate) const IMMEDIATE_DESTINATION: u16 = 1;
/// `NFTA_IMMEDIATE_DATA`.
pub(crate) const IMMEDIATE_DATA: u16 = 2;

/// `NFTA_REDIR_REG_PROTO_MIN`.
pub(crate) const REDIRECT_PORT: u16 = 1;

/// `NFTA_NAT_TYPE`.
pub(crate) const NAT_TYPE: u16 = 1;
/// `NFTA_NAT_FAMILY`.
pub(crate) const NAT_FAMILY: u16 = 2;
/// `NFTA_NAT_REG_ADDR_MIN`.
pub(crate) const NAT_ADDRESS: u16 = 3;
/// `NFTA_NAT_REG_PROTO_MIN`.
pub(crate) const NAT_PORT: u16 = 5;
