-- An Idempotency-Key remembers what was asked under it, and is free again when its call has failed.

alter table metering.idempotency add column body text not null default '';
comment on column metering.idempotency.body is 'Digest of what was asked under the key; empty = not known.';
