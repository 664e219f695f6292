"""Users, access keys and the audit log: schema `identity`."""
