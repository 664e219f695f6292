-- What was reported to Payment Kit, account by account: the comparison with Payment Kit's own list reads it so.
create index outbox_sent on metering.outbox (account, sent_at) where state = 'sent' and batch is null;
