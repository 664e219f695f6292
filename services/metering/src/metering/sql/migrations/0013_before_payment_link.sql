-- Where users buy credits at Payment Kit, as it was last found or made: known while Payment Kit is away.

create table metering.payment_link (
    kit text not null,
    livemode boolean not null,
    unit text not null,
    link_id text not null,
    found_at timestamptz not null default now(),
    primary key (kit, livemode, unit)
);
comment on table metering.payment_link is 'The payment link of each Payment Kit, mode and unit; derived, may be deleted.';

grant select, insert, update on metering.payment_link to metering;
