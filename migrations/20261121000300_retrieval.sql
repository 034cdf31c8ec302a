-- Retrieval: indexed files, their chunks with vectors, and postings for BM25. Plain Postgres; vectors are real[].
-- Every key starts with tenant, so that no statement has a reason to cross tenants. The column that tells most comes
-- next: with scope_id there, a planner without statistics takes the wrong index and walks a whole scope for each key.

create table public.rag_scopes (
  tenant      text        not null check (tenant ~ '^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$'),
  scope_id    bigint      not null generated always as identity,
  collection  text        not null check (length(collection) between 1 and 200),
  chunk_count bigint      not null default 0 check (chunk_count >= 0),
  token_sum   bigint      not null default 0 check (token_sum >= 0),
  version     bigint      not null default 0,
  updated_at  timestamptz not null default clock_timestamp(),
  primary key (tenant, scope_id),
  unique (tenant, collection)
);
comment on table public.rag_scopes is 'One row for each collection of a tenant, with the totals that BM25 needs.';
comment on column public.rag_scopes.tenant is 'Owner of the collection.';
comment on column public.rag_scopes.scope_id is 'Short key of (tenant, collection) in the other tables.';
comment on column public.rag_scopes.collection is 'Name of the repository or document set.';
comment on column public.rag_scopes.chunk_count is 'Chunks in the scope, kept exact by the transaction that changes them.';
comment on column public.rag_scopes.token_sum is 'Sum of token_count over the chunks; divided by chunk_count it is the mean length.';
comment on column public.rag_scopes.version is 'Grows with every change of chunks or vectors; a cache that holds an older one is stale.';
comment on column public.rag_scopes.updated_at is 'Last change, by the database clock.';

create table public.rag_sources (
  tenant         text        not null,
  source_id      bigint      not null generated always as identity,
  scope_id       bigint      not null,
  path           text        not null check (length(path) between 1 and 4096),
  language       text        not null,
  bytes          bigint      not null check (bytes >= 0),
  content_sha256 bytea       not null check (octet_length(content_sha256) = 32),
  chunk_count    integer     not null check (chunk_count >= 0),
  term_ids       bigint[]    not null,
  indexed_at     timestamptz not null default clock_timestamp(),
  primary key (tenant, source_id),
  unique (tenant, scope_id, path),
  foreign key (tenant, scope_id) references public.rag_scopes (tenant, scope_id) on delete cascade
);
comment on table public.rag_sources is 'One row for each indexed file.';
comment on column public.rag_sources.tenant is 'Owner of the file.';
comment on column public.rag_sources.source_id is 'Key of the file; it stays while the content changes.';
comment on column public.rag_sources.scope_id is 'Collection of the file.';
comment on column public.rag_sources.path is 'Path below the root, parts separated by a slash.';
comment on column public.rag_sources.language is 'Language as judged by the name.';
comment on column public.rag_sources.bytes is 'Size in bytes.';
comment on column public.rag_sources.content_sha256 is 'Hash of the content; an equal hash means that nothing is written.';
comment on column public.rag_sources.chunk_count is 'Chunks of the file.';
comment on column public.rag_sources.term_ids is 'Distinct terms of the file: the keys of its postings, so that they are removed without a search.';
comment on column public.rag_sources.indexed_at is 'When this content was indexed, by the database clock.';

create sequence public.rag_chunk_id;
comment on sequence public.rag_chunk_id is 'Ids of chunks, one range for prose and code, so that postings need not say which.';

create table public.vector_documents (
  tenant       text        not null,
  chunk_id     bigint      not null,
  scope_id     bigint      not null,
  source_id    bigint      not null,
  part         integer     not null check (part >= 0),
  heading      text,
  start_line   integer     not null check (start_line >= 1),
  end_line     integer     not null check (end_line >= start_line),
  content      text        not null,
  token_count  integer     not null check (token_count >= 0),
  text_sha256  bytea       not null check (octet_length(text_sha256) = 32),
  embedder     text,
  embedding    real[],
  primary key (tenant, chunk_id),
  foreign key (tenant, source_id) references public.rag_sources (tenant, source_id) on delete cascade,
  constraint vector_documents_embedding_names_its_embedder check ((embedding is null) = (embedder is null))
);
comment on table public.vector_documents is 'Chunks of prose: Markdown and plain text.';
comment on column public.vector_documents.tenant is 'Owner of the chunk.';
comment on column public.vector_documents.chunk_id is 'Key of the chunk; new content gets new ids.';
comment on column public.vector_documents.scope_id is 'Collection of the chunk.';
comment on column public.vector_documents.source_id is 'File of the chunk.';
comment on column public.vector_documents.part is '0 for the first piece of a section, 1 and up for its continuations.';
comment on column public.vector_documents.heading is 'Headings above the text, outermost first.';
comment on column public.vector_documents.start_line is 'First line, from 1.';
comment on column public.vector_documents.end_line is 'Last line, inclusive.';
comment on column public.vector_documents.content is 'The lines, verbatim.';
comment on column public.vector_documents.token_count is 'Terms of the chunk with repeats, as BM25 counts them.';
comment on column public.vector_documents.text_sha256 is 'Hash of the text that is embedded; key of the cache.';
comment on column public.vector_documents.embedder is 'Identity of the embedder that made the vector; null while none did.';
comment on column public.vector_documents.embedding is 'Vector of unit length; null while the chunk waits for it.';

create table public.code_vectors (
  tenant         text        not null,
  chunk_id       bigint      not null,
  scope_id       bigint      not null,
  source_id      bigint      not null,
  part           integer     not null check (part >= 0),
  kind           text        not null,
  symbol         text,
  qualified_name text,
  start_line     integer     not null check (start_line >= 1),
  end_line       integer     not null check (end_line >= start_line),
  content        text        not null,
  token_count    integer     not null check (token_count >= 0),
  text_sha256    bytea       not null check (octet_length(text_sha256) = 32),
  embedder       text,
  embedding      real[],
  primary key (tenant, chunk_id),
  foreign key (tenant, source_id) references public.rag_sources (tenant, source_id) on delete cascade,
  constraint code_vectors_embedding_names_its_embedder check ((embedding is null) = (embedder is null))
);
comment on table public.code_vectors is 'Chunks of code and configuration, cut by definition where the language has a grammar.';
comment on column public.code_vectors.tenant is 'Owner of the chunk.';
comment on column public.code_vectors.chunk_id is 'Key of the chunk; new content gets new ids.';
comment on column public.code_vectors.scope_id is 'Collection of the chunk.';
comment on column public.code_vectors.source_id is 'File of the chunk.';
comment on column public.code_vectors.part is '0 for the first piece of a definition, 1 and up for its continuations.';
comment on column public.code_vectors.kind is 'function, method, struct, class, ...; members for what stands between members, module for loose lines.';
comment on column public.code_vectors.symbol is 'Simple name of the definition; null for loose lines.';
comment on column public.code_vectors.qualified_name is 'Name with what it is inside of, such as Bus::claim.';
comment on column public.code_vectors.start_line is 'First line, from 1.';
comment on column public.code_vectors.end_line is 'Last line, inclusive.';
comment on column public.code_vectors.content is 'The lines, verbatim.';
comment on column public.code_vectors.token_count is 'Terms of the chunk with repeats, as BM25 counts them.';
comment on column public.code_vectors.text_sha256 is 'Hash of the text that is embedded; key of the cache.';
comment on column public.code_vectors.embedder is 'Identity of the embedder that made the vector; null while none did.';
comment on column public.code_vectors.embedding is 'Vector of unit length; null while the chunk waits for it.';

-- Vectors do not compress, so trying costs time for nothing.
alter table public.vector_documents alter column embedding set storage external;
alter table public.code_vectors alter column embedding set storage external;

create index vector_documents_source on public.vector_documents (tenant, source_id);
create index code_vectors_source on public.code_vectors (tenant, source_id);
create index vector_documents_embedder on public.vector_documents (tenant, scope_id, embedder, chunk_id);
create index code_vectors_embedder on public.code_vectors (tenant, scope_id, embedder, chunk_id);
create index code_vectors_symbol on public.code_vectors (tenant, lower(symbol), scope_id);

create table public.rag_terms (
  tenant   text   not null,
  scope_id bigint not null,
  term_id  bigint not null generated always as identity,
  term     text   not null,
  df       bigint not null check (df >= 0),
  primary key (tenant, term_id),
  unique (tenant, term, scope_id),
  foreign key (tenant, scope_id) references public.rag_scopes (tenant, scope_id) on delete cascade
) with (fillfactor = 80);
comment on table public.rag_terms is 'Terms of a scope; one without chunks is removed.';
comment on column public.rag_terms.tenant is 'Owner of the scope.';
comment on column public.rag_terms.scope_id is 'Collection in which the term occurs.';
comment on column public.rag_terms.term_id is 'Short key of the term in the postings.';
comment on column public.rag_terms.term is 'Lower-case stem or joined identifier.';
comment on column public.rag_terms.df is 'Chunks of the scope that contain the term, kept exact.';

create table public.rag_postings (
  tenant        text      not null,
  scope_id      bigint    not null,
  term_id       bigint    not null,
  source_id     bigint    not null,
  chunk_ids     bigint[]  not null,
  term_counts   integer[] not null,
  chunk_lengths integer[] not null,
  primary key (tenant, term_id, source_id),
  foreign key (tenant, scope_id) references public.rag_scopes (tenant, scope_id) on delete cascade
);
comment on table public.rag_postings is 'Where a term occurs: one row for each file, arrays over its chunks, so that scoring needs no join.';
comment on column public.rag_postings.tenant is 'Owner of the scope.';
comment on column public.rag_postings.scope_id is 'Collection of the file.';
comment on column public.rag_postings.term_id is 'The term.';
comment on column public.rag_postings.source_id is 'The file.';
comment on column public.rag_postings.chunk_ids is 'Chunks of the file that contain the term.';
comment on column public.rag_postings.term_counts is 'How often, for each of chunk_ids.';
comment on column public.rag_postings.chunk_lengths is 'token_count of each of chunk_ids.';

create table public.embedding_cache (
  tenant      text        not null,
  embedder    text        not null,
  text_sha256 bytea       not null check (octet_length(text_sha256) = 32),
  embedding   real[]      not null,
  created_at  timestamptz not null default clock_timestamp(),
  primary key (tenant, embedder, text_sha256)
);
comment on table public.embedding_cache is 'Vectors by content, so that a tenant never pays twice for the same text.';
comment on column public.embedding_cache.tenant is 'Who had the text embedded; never shared, since a hit would tell that another has the same text.';
comment on column public.embedding_cache.embedder is 'Identity of the embedder.';
comment on column public.embedding_cache.text_sha256 is 'Hash of the embedded text.';
comment on column public.embedding_cache.embedding is 'Vector of unit length.';
comment on column public.embedding_cache.created_at is 'When it was made, by the database clock.';

do $$
declare
  name text;
begin
  foreach name in array array['rag_scopes', 'rag_sources', 'vector_documents', 'code_vectors', 'rag_terms',
                              'rag_postings', 'embedding_cache']
  loop
    execute format('alter table public.%I enable row level security', name);
    execute format('revoke all on public.%I from public', name);
    if exists (select from pg_roles where rolname = 'anon') then
      execute format('revoke all on public.%I from anon', name);
    end if;
    if exists (select from pg_roles where rolname = 'authenticated') then
      execute format('revoke all on public.%I from authenticated', name);
    end if;
    if exists (select from pg_roles where rolname = 'service_role') then
      execute format('grant select, insert, update, delete on public.%I to service_role', name);
    end if;
  end loop;
  revoke all on sequence public.rag_chunk_id from public;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant usage on sequence public.rag_chunk_id to service_role;
  end if;
end
$$;
