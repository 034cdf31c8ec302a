-- The code graph: files with what was extracted from them, nodes, edges and references that lead nowhere.
-- Ids are digests of names, so that the same tree has the same rows in every build.

create table public.kg_builds (
  id          bigint      generated always as identity primary key,
  tenant      text        not null check (tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  repo        text        not null check (length(repo) between 1 and 400),
  revision    text,
  stats       jsonb       not null,
  started_at  timestamptz not null,
  finished_at timestamptz not null default clock_timestamp()
);
create index kg_builds_latest on public.kg_builds (tenant, repo, id desc);
comment on table public.kg_builds is 'One row per build that changed the graph; a build of an unchanged tree leaves none.';
comment on column public.kg_builds.id is 'Number of the build, growing.';
comment on column public.kg_builds.tenant is 'Owner of the repository.';
comment on column public.kg_builds.repo is 'Name of the repository within the tenant.';
comment on column public.kg_builds.revision is 'Revision of the tree, where the caller knows one.';
comment on column public.kg_builds.stats is 'Counts of the build: files, references, edges, rows written, duration.';
comment on column public.kg_builds.started_at is 'When the build took the lock of the repository.';
comment on column public.kg_builds.finished_at is 'When the changes were written, just before the commit.';

create table public.kg_files (
  tenant          text     not null,
  repo            text     not null,
  id              bigint   not null,
  path            text     not null,
  language        text     not null,
  content_sha256  bytea    not null check (length(content_sha256) = 32),
  bytes           bigint   not null,
  lines           integer  not null,
  parse_errors    boolean  not null,
  is_test         boolean  not null,
  extractor       smallint not null,
  facts           jsonb    not null,
  build_id        bigint   not null,
  primary key (tenant, repo, id),
  unique (path, tenant, repo)
);
comment on table public.kg_files is 'Source files of a repository with what extraction found in them.';
comment on column public.kg_files.tenant is 'Owner of the repository.';
comment on column public.kg_files.repo is 'Name of the repository within the tenant.';
comment on column public.kg_files.id is 'Digest of the path; also the id of the node of the file.';
comment on column public.kg_files.path is 'Path from the root of the tree, with / between the parts.';
comment on column public.kg_files.language is 'rust, python, typescript, javascript or go.';
comment on column public.kg_files.content_sha256 is 'SHA-256 of the content; equal means that facts are still valid.';
comment on column public.kg_files.bytes is 'Size in bytes.';
comment on column public.kg_files.lines is 'Number of lines.';
comment on column public.kg_files.parse_errors is 'Whether the parser met something that it could not read.';
comment on column public.kg_files.is_test is 'Whether the path is a test by the conventions of the language.';
comment on column public.kg_files.extractor is 'Version of the extraction that made facts.';
comment on column public.kg_files.facts is 'Definitions and references of the file, before resolution.';
comment on column public.kg_files.build_id is 'Build that last changed the row.';

create table public.kg_nodes (
  tenant          text    not null,
  repo            text    not null,
  id              bigint  not null,
  kind            text    not null,
  name            text    not null,
  qualified_name  text    not null,
  language        text,
  path            text,
  start_line      integer not null,
  end_line        integer not null,
  file_id         bigint,
  unit_id         bigint  not null,
  primary key (tenant, repo, id),
  foreign key (tenant, repo, file_id) references public.kg_files (tenant, repo, id)
);
-- The selective column leads: without fresh statistics any index that starts with tenant and repo looks as good
-- as the right one, and a query reads the whole repository for each row.
create index kg_nodes_by_name on public.kg_nodes (lower(name), tenant, repo);
create index kg_nodes_by_path on public.kg_nodes (path, tenant, repo);
create index kg_nodes_by_file on public.kg_nodes (file_id, tenant, repo);
create index kg_nodes_by_unit on public.kg_nodes (unit_id, tenant, repo);
comment on table public.kg_nodes is 'Files, definitions, packages and external packages.';
comment on column public.kg_nodes.tenant is 'Owner of the repository.';
comment on column public.kg_nodes.repo is 'Name of the repository within the tenant.';
comment on column public.kg_nodes.id is 'Digest of what the node is called.';
comment on column public.kg_nodes.kind is 'file, package (a directory imported as one), asset, external, or a kind of definition such as function or test.';
comment on column public.kg_nodes.name is 'Short name.';
comment on column public.kg_nodes.qualified_name is 'Full name as its language writes it; ecosystem:package for external packages.';
comment on column public.kg_nodes.language is 'Language, null for packages, assets and external packages.';
comment on column public.kg_nodes.path is 'File or directory, null for external packages.';
comment on column public.kg_nodes.start_line is 'First line, counted from 1; 0 where there are none.';
comment on column public.kg_nodes.end_line is 'Last line.';
comment on column public.kg_nodes.file_id is 'File that owns the node and takes it along when it goes.';
comment on column public.kg_nodes.unit_id is 'Node that is compiled as one with this one: the file, or the package in Go.';

create table public.kg_edges (
  tenant       text    not null,
  repo         text    not null,
  src_id       bigint  not null,
  dst_id       bigint  not null,
  src_unit_id  bigint  not null,
  dst_unit_id  bigint  not null,
  kind         text    not null check (kind in ('imports', 'reexports', 'references', 'declares', 'via')),
  line         integer not null,
  start_line   integer not null,
  end_line     integer not null,
  count        integer not null check (count > 0),
  text         text    not null,
  resolution   text    not null,
  confidence   real    not null check (confidence between 0 and 1),
  primary key (tenant, repo, src_id, line, kind, dst_id),
  foreign key (tenant, repo, src_id) references public.kg_files (tenant, repo, id),
  foreign key (tenant, repo, dst_id) references public.kg_nodes (tenant, repo, id)
);
create index kg_edges_backward on public.kg_edges (dst_id, tenant, repo);
create index kg_edges_backward_by_unit on public.kg_edges (dst_unit_id, tenant, repo) include (src_unit_id);
comment on table public.kg_edges is 'Which file takes what from where, and how surely that is known.';
comment on column public.kg_edges.tenant is 'Owner of the repository.';
comment on column public.kg_edges.repo is 'Name of the repository within the tenant.';
comment on column public.kg_edges.src_id is 'File in which the reference stands; it owns the edge.';
comment on column public.kg_edges.dst_id is 'Node to which it leads.';
comment on column public.kg_edges.src_unit_id is 'Unit of the source node, repeated here for walks.';
comment on column public.kg_edges.dst_unit_id is 'Unit of the target node, repeated here for walks.';
comment on column public.kg_edges.kind is 'imports, reexports, references (a qualified path in the code), declares (a module declaration), via (a file that passes the name on; not counted as a reference).';
comment on column public.kg_edges.line is 'Line of the name itself.';
comment on column public.kg_edges.start_line is 'First line of the statement.';
comment on column public.kg_edges.end_line is 'Last line of the statement.';
comment on column public.kg_edges.count is 'References that this edge stands for.';
comment on column public.kg_edges.text is 'The reference in one line, shortened.';
comment on column public.kg_edges.resolution is 'How the target was found: exact, reexport, star, member_unknown, ambiguous, heuristic, external, external_undeclared.';
comment on column public.kg_edges.confidence is 'How sure the target is, 0 to 1.';

create table public.kg_unresolved (
  tenant      text    not null,
  repo        text    not null,
  file_id     bigint  not null,
  line        integer not null,
  kind        text    not null,
  text        text    not null,
  reason      text    not null,
  start_line  integer not null,
  end_line    integer not null,
  count       integer not null check (count > 0),
  names       text[]  not null,
  primary key (tenant, repo, file_id, line, kind, text, reason),
  foreign key (tenant, repo, file_id) references public.kg_files (tenant, repo, id)
);
comment on table public.kg_unresolved is 'References that lead nowhere known; kept, so that no answer claims to be complete when it is not.';
comment on column public.kg_unresolved.tenant is 'Owner of the repository.';
comment on column public.kg_unresolved.repo is 'Name of the repository within the tenant.';
comment on column public.kg_unresolved.file_id is 'File in which the reference stands.';
comment on column public.kg_unresolved.line is 'Line of the name itself.';
comment on column public.kg_unresolved.kind is 'imports, reexports, references or declares.';
comment on column public.kg_unresolved.text is 'The reference in one line, shortened.';
comment on column public.kg_unresolved.reason is 'Why: computed, no_such_file, no_such_module, no_such_name, unknown_name, no_entry_file, unknown_alias, outside_tree.';
comment on column public.kg_unresolved.start_line is 'First line of the statement.';
comment on column public.kg_unresolved.end_line is 'Last line of the statement.';
comment on column public.kg_unresolved.count is 'References that this row stands for.';
comment on column public.kg_unresolved.names is 'Names that the reference mentions.';

alter table public.kg_builds enable row level security;
alter table public.kg_files enable row level security;
alter table public.kg_nodes enable row level security;
alter table public.kg_edges enable row level security;
alter table public.kg_unresolved enable row level security;

revoke all on public.kg_builds, public.kg_files, public.kg_nodes, public.kg_edges, public.kg_unresolved
  from public, anon, authenticated;
grant select, insert, update, delete
  on public.kg_builds, public.kg_files, public.kg_nodes, public.kg_edges, public.kg_unresolved
  to service_role;
