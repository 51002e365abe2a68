//! Opens tunnels over what there is: a directly attached workstation, else the manager.
