-- a queue with the functions of pgmq that `cogo bench bus` calls, for tests without pgmq
create schema pgmq;
create table pgmq.q_mixed (
  msg_id bigserial primary key, read_ct integer not null default 0,
  vt timestamptz not null default clock_timestamp(), message jsonb not null);
create table pgmq.a_mixed (msg_id bigint primary key, message jsonb not null);
create function pgmq.create(text) returns void language sql as 'select';
create function pgmq.send_batch(text, jsonb[]) returns setof bigint language sql as
  'insert into pgmq.q_mixed (message) select unnest($2) returning msg_id';
create function pgmq.read(text, integer, integer) returns setof pgmq.q_mixed language sql as
  'update pgmq.q_mixed set vt = clock_timestamp() + make_interval(secs => $2), read_ct = read_ct + 1
    where msg_id in (select msg_id from pgmq.q_mixed where vt <= clock_timestamp()
                      order by msg_id limit $3 for update skip locked)
   returning *';
create function pgmq.archive(text, bigint[]) returns setof bigint language sql as
  'with gone as (delete from pgmq.q_mixed where msg_id = any ($2) returning msg_id, message),
        kept as (insert into pgmq.a_mixed select msg_id, message from gone returning msg_id)
   select msg_id from kept';
