-- Decisions: which targets can serve an intent, what was decided and with what probability, and what came of it.

create table public.orch_targets (
  target_id               bigint           generated always as identity primary key,
  intent                  text             not null check (intent ~ '^[a-z][a-z0-9-]{0,62}$'),
  tenant                  text             check (tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  service                 text             not null check (service ~ '^[a-z][a-z0-9-]{0,62}$'),
  role                    text             not null check (role ~ '^[a-z][a-z0-9-]{0,62}$'),
  shard                   integer          not null default 0 check (shard between 0 and 65535),
  model                   text             check (length(model) between 1 and 200),
  agent                   text             check (agent ~ '^[a-z][a-z0-9-]{0,62}$'),
  slo_ms                  bigint           not null default 5000 check (slo_ms between 1 and 86400000),
  ttl_ms                  bigint           not null default 60000 check (ttl_ms between 1 and 86400000),
  max_cost_usd            double precision check (max_cost_usd between 0 and 1000000),
  max_tokens              bigint           check (max_tokens >= 0),
  price_usd_per_1k_tokens double precision check (price_usd_per_1k_tokens between 0 and 1000),
  cost_prior_usd          double precision not null default 0 check (cost_prior_usd between 0 and 1000000),
  uses_knowledge          boolean          not null default false,
  enabled                 boolean          not null default true,
  created_at              timestamptz      not null default clock_timestamp(),
  constraint orch_targets_once unique nulls not distinct (intent, tenant, service, role, shard, model),
  constraint orch_targets_leave_the_control_plane check (service not in ('orchestrator', 'executor'))
);
comment on table public.orch_targets is 'What can serve an intent; several rows of one intent are candidates of each decision on it.';
comment on column public.orch_targets.target_id is 'Key of the candidate; disable a row rather than delete it, decisions point here.';
comment on column public.orch_targets.intent is 'What a caller wants, as sent to the front door.';
comment on column public.orch_targets.tenant is 'Only for this tenant; null means for all.';
comment on column public.orch_targets.service is 'First part of the route that the work goes to.';
comment on column public.orch_targets.role is 'Second part of that route.';
comment on column public.orch_targets.shard is 'Third part of that route.';
comment on column public.orch_targets.model is 'The model that the target must use; null leaves the choice to it.';
comment on column public.orch_targets.agent is 'Name of the process that claims the route, by which the registry tells whether it lives.';
comment on column public.orch_targets.slo_ms is 'Time from sending to result that counts as prompt, in ms.';
comment on column public.orch_targets.ttl_ms is 'Most time that work on it gets, in ms from dispatch over all attempts.';
comment on column public.orch_targets.max_cost_usd is 'Most money that one message may cost; null leaves it to the dispatcher.';
comment on column public.orch_targets.max_tokens is 'Most tokens that one message may use; null leaves it to the dispatcher.';
comment on column public.orch_targets.price_usd_per_1k_tokens is 'Price where the worker reports tokens but no money; null if unknown or free.';
comment on column public.orch_targets.cost_prior_usd is 'Expected cost of a message before anything was observed; weighs as one observation.';
comment on column public.orch_targets.uses_knowledge is 'Whether its answers rest on what the tenant has indexed; switches the score kg on.';
comment on column public.orch_targets.enabled is 'Whether it takes part in decisions; an intent without an enabled row is unknown.';
comment on column public.orch_targets.created_at is 'When the row was made.';

insert into public.orch_targets (intent, service, role, agent, slo_ms, ttl_ms, max_cost_usd, max_tokens, uses_knowledge)
values
  ('ask',         'gateway', 'chat',  'gateway-chat',    2000,   60000,   0.10,  200000,  true),
  ('index',       'rag',     'index', 'rag-dispatcher',  60000,  1800000, 1.00,  5000000, false),
  ('embed',       'rag',     'embed', 'rag-embed',       60000,  1800000, 1.00,  5000000, false),
  ('build-graph', 'kg',      'build', 'kg-builder',      60000,  1800000, null,  null,    false),
  ('run',         'sandbox', 'run',   'sandbox-manager', 60000,  600000,  null,  null,    false);

create table public.orch_decisions (
  decision_id    uuid             primary key,
  message_id     uuid             not null constraint orch_decisions_one_per_message unique,
  task_id        uuid             not null,
  tenant         text             not null,
  intent         text             not null,
  at             timestamptz      not null default clock_timestamp(),
  target_id      bigint           not null references public.orch_targets (target_id),
  route          text             not null,
  model          text,
  probability    double precision not null check (probability > 0 and probability <= 1),
  epsilon        double precision not null check (epsilon between 0 and 1),
  explored       boolean          not null,
  candidates     jsonb            not null,
  weights        double precision[] not null check (cardinality(weights) = 4),
  policy_version text             not null,
  assignment     jsonb            not null
);
comment on table public.orch_decisions is 'Every decision that was carried out, complete enough to be taken again with the same result.';
comment on column public.orch_decisions.decision_id is 'Key of the decision and seed of its draw.';
comment on column public.orch_decisions.message_id is 'The message of orchestrator/decide that it answers; written in the transaction of its completion.';
comment on column public.orch_decisions.task_id is 'The task that the message belongs to.';
comment on column public.orch_decisions.tenant is 'Whose task it is.';
comment on column public.orch_decisions.intent is 'What was wanted.';
comment on column public.orch_decisions.at is 'When, by the database clock.';
comment on column public.orch_decisions.target_id is 'The candidate that was picked.';
comment on column public.orch_decisions.route is 'service/role/shard of the pick.';
comment on column public.orch_decisions.model is 'Model of the pick, if it names one.';
comment on column public.orch_decisions.probability is 'Probability with which the policy picks what it picked.';
comment on column public.orch_decisions.epsilon is 'Share of exploration at this decision; 0 with a single eligible candidate.';
comment on column public.orch_decisions.explored is 'Whether the pick was drawn at random rather than the best.';
comment on column public.orch_decisions.candidates is 'Every candidate: target_id, route, model, scores, total, probability, eligible and the reason if not.';
comment on column public.orch_decisions.weights is 'Weights of health, quality, cost and kg, of sum 1.';
comment on column public.orch_decisions.policy_version is 'Version of formulas and policy.';
comment on column public.orch_decisions.assignment is 'Limits sent along to the dispatcher.';
create index orch_decisions_at on public.orch_decisions (at);

create table public.orch_outcomes (
  event_id    bigint           primary key,
  decision_id uuid             not null references public.orch_decisions (decision_id) on delete cascade,
  target_id   bigint           not null,
  kind        text             not null check (kind in ('execute_done', 'execute_retry', 'execute_failed')),
  at          timestamptz      not null,
  attempt     smallint,
  latency_ms  double precision,
  cost_usd    double precision,
  tokens      bigint
);
comment on table public.orch_outcomes is 'What came of decisions; each audit row of the bus is learned from once, whoever sees it first.';
comment on column public.orch_outcomes.event_id is 'The row of bus_events that told of it.';
comment on column public.orch_outcomes.decision_id is 'The decision that it is credited to.';
comment on column public.orch_outcomes.target_id is 'The candidate that had been picked.';
comment on column public.orch_outcomes.kind is 'execute_done, execute_retry or execute_failed.';
comment on column public.orch_outcomes.at is 'When it happened.';
comment on column public.orch_outcomes.attempt is 'Which attempt; 0 if it was never started.';
comment on column public.orch_outcomes.latency_ms is 'Time from sending to this end, waiting included; null if it was never started.';
comment on column public.orch_outcomes.cost_usd is 'Money that the worker reported; null if it reported no usage.';
comment on column public.orch_outcomes.tokens is 'Tokens that the worker reported; null if it reported no usage.';
create index orch_outcomes_decision on public.orch_outcomes (decision_id);

create table public.orch_stats (
  target_id    bigint           primary key references public.orch_targets (target_id) on delete cascade,
  decisions    bigint           not null default 0,
  done         bigint           not null default 0,
  failed       bigint           not null default 0,
  retried      bigint           not null default 0,
  usage_count  bigint           not null default 0,
  cost_usd_sum double precision not null default 0,
  tokens_sum   double precision not null default 0,
  ok_weight    double precision not null default 0,
  fail_weight  double precision not null default 0,
  latency_ms   double precision,
  learned_at   timestamptz
) with (fillfactor = 50);
comment on table public.orch_stats is 'What the orchestrator has learned of each candidate; a restart goes on from here.';
comment on column public.orch_stats.target_id is 'The candidate.';
comment on column public.orch_stats.decisions is 'How often it was picked; counted in the transaction of the decision.';
comment on column public.orch_stats.done is 'Messages that it ended well.';
comment on column public.orch_stats.failed is 'Messages that became dead letters.';
comment on column public.orch_stats.retried is 'Attempts that failed and were followed by another.';
comment on column public.orch_stats.usage_count is 'Outcomes that reported usage.';
comment on column public.orch_stats.cost_usd_sum is 'Money over these outcomes.';
comment on column public.orch_stats.tokens_sum is 'Tokens over these outcomes.';
comment on column public.orch_stats.ok_weight is 'Successes, each halved every half-life, as of learned_at.';
comment on column public.orch_stats.fail_weight is 'Failed attempts, likewise.';
comment on column public.orch_stats.latency_ms is 'Exponentially weighted mean of the time from sending to a good end.';
comment on column public.orch_stats.learned_at is 'Time of the newest outcome that is counted here.';

create table public.orch_progress (
  one            boolean primary key default true check (one),
  events_through bigint  not null default 0
);
comment on table public.orch_progress is 'How far the audit rows of the bus have been learned from.';
comment on column public.orch_progress.one is 'Holds the table to one row.';
comment on column public.orch_progress.events_through is 'Rows of bus_events up to this id are never looked at again.';
insert into public.orch_progress default values;

create function public.orch_agents_of(service text, role text, shard integer) returns table (name text, version text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select distinct a.name, a.version
    from registry.agents a
   where a.state = 'active'
     and (a.capabilities @> array['route:' || orch_agents_of.service || '/' || orch_agents_of.role || '/'
                                   || orch_agents_of.shard]
          or a.name in (select t.agent from public.orch_targets t
                         where t.service = orch_agents_of.service and t.role = orch_agents_of.role
                           and t.shard = orch_agents_of.shard))
$$;
comment on function public.orch_agents_of(text, text, integer)
  is 'Sorts (name and version) of active agents that serve a route: those that declare capability route:<route>, or are named by a target of it.';

revoke all on public.orch_targets, public.orch_decisions, public.orch_outcomes, public.orch_stats, public.orch_progress
  from public, anon, authenticated;
revoke execute on function public.orch_agents_of(text, text, integer) from public, anon, authenticated;
grant select, insert, update, delete
  on public.orch_targets, public.orch_decisions, public.orch_outcomes, public.orch_stats, public.orch_progress
  to service_role;
grant execute on function public.orch_agents_of(text, text, integer) to service_role;

alter table public.orch_targets enable row level security;
alter table public.orch_decisions enable row level security;
alter table public.orch_outcomes enable row level security;
alter table public.orch_stats enable row level security;
alter table public.orch_progress enable row level security;
