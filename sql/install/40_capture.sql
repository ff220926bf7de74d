-- From a change to an entry: the triggers, and what sets them up.

create function _private.capture() returns trigger
language c as 'MODULE_PATHNAME', 'outbox_capture';
comment on function _private.capture() is
    'Row trigger of an attached table: adds events to the buffer of the backend, which is written at commit. Made by outbox.attach.';

create function _private.hold_columns() returns trigger
language c as 'MODULE_PATHNAME', 'outbox_hold_columns';
comment on function _private.hold_columns() is
    'Does nothing. Its trigger is disabled and is there for its column list alone: with it Postgres follows renames, refuses to drop or retype a column that a source uses, and carries the list to partitions and through dumps.';

create function _private.truncated() returns trigger
language c as 'MODULE_PATHNAME', 'outbox_truncated';
comment on function _private.truncated() is
    'Statement trigger of an attached table: counts a TRUNCATE and warns, because it makes no events.';

create function _private.register_event_type(name text, description text) returns smallint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    found_id smallint;
begin
    if name is null or name !~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$' or length(name) > 128 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid event type %L', name),
            hint = 'Use <entity>.<verb> in lower case, such as job.created, of at most 128 characters.';
    end if;
    select t.type_id into found_id from _private.event_types t where t.event_type = name;
    if not found then
        -- Two sessions may register the same name: the later one reads what the first has made.
        insert into _private.event_types (event_type, description)
        values (name, register_event_type.description)
        on conflict (event_type) do nothing;
        select t.type_id into found_id from _private.event_types t where t.event_type = name;
    end if;
    return found_id;
end
$$;
comment on function _private.register_event_type(text, text) is
    'Id of an event type, which is added to the registry when it is new.';

create function outbox.create_event_type(
    event_type text, description text default null
) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select _private.register_event_type(event_type, description);
$$;
comment on function outbox.create_event_type(text, text) is
    'Registers an event type for outbox.emit. Does nothing when it exists. outbox.attach registers its own.';

-- The checks of attach, each with the way to mend it. Returns what the source's row will hold.
create function _private.checked_source(
    caller oid, source regclass, entity text, topic text, org_column name, key_columns name[],
    watch name[], events text[], include name[]
) returns _private.sources
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    result _private.sources;
    relation pg_class;
    missing name;
    org_type regtype;
begin
    if source is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'source must not be null',
            hint = 'Name a table, as in outbox.attach(''cataloging_jobs'').';
    end if;
    select c.* into relation from pg_class c where c.oid = source;
    if not found then
        raise exception using
            errcode = 'undefined_table',
            message = format('table with OID %s does not exist', source::oid);
    end if;
    if relation.relkind not in ('r', 'p') then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s is not a table', source),
            hint = 'Attach the table or partitioned table that holds the rows.';
    end if;
    if relation.relpersistence = 't' then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s is a temporary table', source),
            hint = 'Attach a permanent table.';
    end if;
    if relation.relnamespace in ('_private'::regnamespace, 'pg_catalog'::regnamespace) then
        raise exception using
            errcode = 'wrong_object_type',
            message = format('%s is a table of the system', source),
            hint = 'Attach a table of your application.';
    end if;
    if not pg_has_role(caller, relation.relowner, 'USAGE') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('must be owner of table %s', source),
            hint = format('Let %s attach it, or become a member of that role.',
                          quote_ident(pg_get_userbyid(relation.relowner)));
    end if;
    result.relation := source;
    result.entity := coalesce(entity, regexp_replace(lower(relation.relname), '[^a-z0-9_]', '_', 'g'));
    if result.entity !~ '^[a-z][a-z0-9_]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid entity %L', result.entity),
            hint = 'Use lower-case letters, digits and underscores, such as job.';
    end if;
    result.topic := coalesce(topic, result.entity);
    if result.topic !~ '^[a-z][a-z0-9_.-]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid topic %L', result.topic),
            hint = 'Use lower-case letters, digits, dots, dashes and underscores, such as cataloging.';
    end if;

    result.events := coalesce(events, '{insert,update,delete}');
    if cardinality(result.events) = 0
       or not result.events <@ array['insert', 'update', 'delete']
       or array_position(result.events, null) is not null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('invalid events %L', result.events),
            hint = 'Name one or more of insert, update and delete.';
    end if;

    result.key_columns := coalesce(key_columns, (
        select array_agg(a.attname order by k.position)
        from pg_index i
        cross join unnest(i.indkey) with ordinality as k (attnum, position)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
        where i.indrelid = source and i.indisprimary and k.position <= i.indnkeyatts));
    if result.key_columns is null then
        raise exception using
            errcode = 'invalid_table_definition',
            message = format('table %s has no primary key', source),
            hint = 'Name the columns that identify a row: key_columns => ''{...}''.';
    end if;
    if cardinality(result.key_columns) = 0 or cardinality(watch) = 0 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('%s must not be empty',
                             case when cardinality(watch) = 0 then 'watch' else 'key_columns' end),
            hint = 'Leave it out to take the default.';
    end if;
    result.org_column := coalesce(org_column, 'org_id');
    result.watch := watch;
    result.include := coalesce(include, '{}');

    select c.name into missing
    from unnest(result.key_columns || result.org_column || coalesce(result.watch, '{}')
                || result.include) as c (name)
    where c.name is null or not exists (
        select from pg_attribute a
        where a.attrelid = source and a.attname = c.name and a.attnum > 0 and not a.attisdropped);
    if found then
        raise exception using
            errcode = 'undefined_column',
            message = format('column %s of table %s does not exist', coalesce(quote_ident(missing), 'null'), source),
            hint = case when missing = 'org_id' and org_column = 'org_id'
                        then 'Name the column that holds the organisation: org_column => ''...''.'
                        else 'Check the names in org_column, key_columns, watch and include.' end;
    end if;
    if exists (
        select from (values (1, result.key_columns), (2, result.watch), (3, result.include))
            as l (list, names)
        cross join lateral unnest(l.names) as c (name)
        group by l.list, c.name having count(*) > 1)
    then
        raise exception using
            errcode = 'duplicate_column',
            message = 'a column is named twice in key_columns, watch or include',
            hint = 'Name each column once.';
    end if;
    with recursive base (type_id) as (
        select a.atttypid from pg_attribute a
        where a.attrelid = source and a.attname = result.org_column
        union all
        select t.typbasetype from base join pg_type t on t.oid = type_id where t.typtype = 'd'
    )
    select type_id::regtype into org_type
    from base join pg_type t on t.oid = type_id where t.typtype <> 'd';
    if org_type not in ('uuid'::regtype, 'smallint'::regtype, 'integer'::regtype, 'bigint'::regtype,
                        'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype) then
        raise exception using
            errcode = 'datatype_mismatch',
            message = format('column %I of table %s cannot be the organisation', result.org_column, source),
            detail = format('It is of type %s.', org_type),
            hint = 'Use a column of type uuid, bigint, integer or text.';
    end if;

    result.key_names := case
        when result.key_columns = '{id}' then array[result.entity || '_id']
        else result.key_columns::text[]
    end;
    return result;
end
$$;
comment on function _private.checked_source(
    oid, regclass, text, text, name, name[], name[], text[], name[]
) is
    'Checks the arguments of outbox.attach and fills in their defaults.';

-- Tables that hold a source's rows and get triggers of their own: itself and, since Postgres
-- carries row triggers to partitions but not to children, everything that inherits from it.
create function _private.captured_relations(source regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive family (relation) as (
        select source
        union
        select i.inhrelid::regclass
        from family f
        join pg_class p on p.oid = f.relation and p.relkind = 'r'
        join pg_inherits i on i.inhparent = f.relation
    )
    select relation from family;
$$;
comment on function _private.captured_relations(regclass) is
    'The tables on which a source has triggers: itself and its inheritance children.';

-- A row must not be captured twice, so no two live sources lie on one line of descent.
create function _private.relative_source(source regclass) returns regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive ancestors (relation) as (
        select inhparent from pg_inherits where inhrelid = source
        union
        select i.inhparent from ancestors a join pg_inherits i on i.inhrelid = a.relation
    ), descendants (relation) as (
        select inhrelid from pg_inherits where inhparent = source
        union
        select i.inhrelid from descendants d join pg_inherits i on i.inhparent = d.relation
    )
    select s.relation
    from _private.sources s
    where s.detached_at is null
      and s.relation in (select relation from ancestors union select relation from descendants)
    limit 1;
$$;
comment on function _private.relative_source(regclass) is
    'A live source among the ancestors and descendants of a table; null when there is none.';

create function _private.drop_triggers(source regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    found_trigger record;
begin
    for found_trigger in
        select t.tgname, t.tgrelid::regclass as relation
        from pg_trigger t
        where t.tgrelid in (select _private.captured_relations(source))
          and t.tgparentid = 0
          and t.tgfoid in ('_private.capture'::regproc, '_private.hold_columns'::regproc,
                           '_private.truncated'::regproc)
    loop
        execute format('drop trigger %I on %s', found_trigger.tgname, found_trigger.relation);
    end loop;
end
$$;
comment on function _private.drop_triggers(regclass) is
    'Takes the triggers of a source off its tables. Locks them as DROP TRIGGER does (ACCESS EXCLUSIVE).';

-- What the capture trigger needs travels in its arguments, and its columns in the column list of
-- a disabled trigger beside it: reading them costs a writer nothing but the relation that it has
-- open already, and Postgres keeps both true through renames, new partitions, dumps and restores.
create function _private.create_triggers(source _private.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    columns name[];
    column_list text;
    relation regclass;
    verbs text;
    arguments text;
begin
    select array_agg(c.name order by c.place) into columns
    from (
        select l.name, min(l.place) as place
        from unnest(source.key_columns || source.org_column || coalesce(source.watch, '{}')
                    || source.include) with ordinality as l (name, place)
        group by l.name
    ) c;
    select string_agg(format('%I', c.name), ', ' order by c.place) into column_list
    from unnest(columns) with ordinality as c (name, place);
    -- A row that moves between partitions is a delete and an insert to row triggers.
    verbs := case
        when (select relkind = 'p' from pg_class where oid = source.relation)
        then 'insert or update or delete'
        else array_to_string(source.events, ' or ')
    end;
    select string_agg(quote_literal(a.argument), ', ' order by a.place) into arguments
    from unnest(array[
        source.source_id::text,
        coalesce(source.created_type, 0)::text,
        coalesce(source.updated_type, 0)::text,
        coalesce(source.deleted_type, 0)::text,
        _private.places(columns, source.key_columns),
        _private.places(columns, array[source.org_column]),
        coalesce(_private.places(columns, source.watch), '*'),
        _private.places(columns, source.include)
    ] || source.include::text[]) with ordinality as a (argument, place);

    for relation in select _private.captured_relations(source.relation) loop
        execute format(
            'create trigger outbox_capture after %s on %s for each row execute function _private.capture(%s)',
            verbs, relation, arguments);
        execute format(
            'create trigger outbox_columns after update of %s on %s for each row execute function _private.hold_columns(%L)',
            column_list, relation, source.source_id);
        execute format('alter table %s disable trigger outbox_columns', relation);
        execute format(
            'create trigger outbox_truncate after truncate on %s for each statement execute function _private.truncated(%L)',
            relation, source.source_id);
    end loop;
end
$$;
comment on function _private.create_triggers(_private.sources) is
    'Puts the triggers of a source on its tables. Locks them in SHARE ROW EXCLUSIVE mode.';

create function _private.places(columns name[], wanted name[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case when wanted is not null then coalesce((
        select string_agg((array_position(columns, w.name) - 1)::text, ',' order by w.place)
        from unnest(wanted) with ordinality as w (name, place)), '') end;
$$;
comment on function _private.places(name[], name[]) is
    'Places of the wanted columns in a list, from 0; null when nothing is wanted at all.';

create function _private.attach(
    caller oid, source regclass, entity text, topic text, org_column name, key_columns name[],
    watch name[], events text[], include name[]
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted _private.sources;
    live _private.sources;
    relative regclass;
begin
    wanted := _private.checked_source(
        caller, source, entity, topic, org_column, key_columns, watch, events, include);
    execute format('lock table %s in share row exclusive mode', source);
    relative := _private.relative_source(source);
    if relative is not null then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('rows of table %s are captured through %s already', source, relative),
            hint = format('Detach %s first: select outbox.detach(%L).', relative, relative);
    end if;

    if 'insert' = any (wanted.events) then
        wanted.created_type := _private.register_event_type(wanted.entity || '.created', null);
    end if;
    if 'update' = any (wanted.events) then
        wanted.updated_type := _private.register_event_type(
            wanted.entity || '.' || case
                when cardinality(wanted.watch) = 1
                then regexp_replace(lower(wanted.watch[1]), '[^a-z0-9_]', '_', 'g') || '_changed'
                else 'updated'
            end, null);
    end if;
    if 'delete' = any (wanted.events) then
        wanted.deleted_type := _private.register_event_type(wanted.entity || '.deleted', null);
    end if;

    select s.* into live from _private.sources s
    where s.relation = source and s.detached_at is null;
    if found then
        wanted.source_id := live.source_id;
        wanted.attached_by := live.attached_by;
        wanted.attached_at := live.attached_at;
        if wanted is not distinct from live
           and not exists (select from _private.uncaptured_relations(live)) then
            return live.source_id;
        end if;
        update _private.sources set detached_at = now() where source_id = live.source_id;
    end if;
    perform _private.drop_triggers(source);
    wanted.source_id := nextval('_private.source_ids');
    wanted.attached_by := pg_get_userbyid(caller);
    wanted.attached_at := now();
    insert into _private.sources select wanted.*;
    perform _private.create_triggers(wanted);
    return wanted.source_id;
end
$$;
comment on function _private.attach(
    oid, regclass, text, text, name, name[], name[], text[], name[]
) is
    'The work of outbox.attach, done as the owner of the extension for a caller who is checked.';

-- A table of a source whose changes make no events: its triggers are missing or would not fire,
-- or it is gone itself.
create function _private.uncaptured_relations(source _private.sources) returns setof regclass
language sql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select r.relation
    from _private.captured_relations((source).relation) as r (relation)
    where (
        select count(distinct t.tgfoid) < 2
        from pg_trigger t
        where t.tgrelid = r.relation
          and split_part(encode(t.tgargs, 'escape'), '\000', 1) = (source).source_id::text
          and (t.tgfoid = '_private.capture'::regproc and t.tgenabled in ('O', 'A')
               or t.tgfoid = '_private.hold_columns'::regproc));
$$;
comment on function _private.uncaptured_relations(_private.sources) is
    'Tables of a source that lack a trigger, or whose trigger is disabled; no rows when all is well.';

create function _private.detach(caller oid, source regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    table_owner oid;
begin
    if source is null then
        raise exception using
            errcode = 'null_value_not_allowed',
            message = 'source must not be null',
            hint = 'Name an attached table; select source from outbox.sources lists them.';
    end if;
    select c.relowner into table_owner from pg_class c where c.oid = source;
    if found and not pg_has_role(caller, table_owner, 'USAGE') then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('must be owner of table %s', source),
            hint = format('Let %s detach it.', quote_ident(pg_get_userbyid(table_owner)));
    end if;
    update _private.sources set detached_at = now()
    where relation = source and detached_at is null;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('table %s is not attached', source),
            hint = 'select source from outbox.sources lists the attached tables.';
    end if;
    perform _private.drop_triggers(source);
end
$$;
comment on function _private.detach(oid, regclass) is
    'The work of outbox.detach, done as the owner of the extension for a caller who is checked.';

create function outbox.attach(
    source regclass,
    entity text default null,
    topic text default null,
    org_column name default 'org_id',
    key_columns name[] default null,
    watch name[] default null,
    events text[] default '{insert,update,delete}',
    include name[] default '{}'
) returns integer
language c as 'MODULE_PATHNAME', 'outbox_attach';
comment on function outbox.attach(regclass, text, text, name, name[], name[], text[], name[]) is
    'Starts to capture the changes of a table and returns the id of the source. Again with other options replaces them at once; with the same ones does nothing. entity: what a row is (default: the table''s name). topic: default the entity. key_columns: default the primary key. watch: columns whose change is an event (default all). include: columns whose values travel. Needs ownership of the table. Locks it in SHARE ROW EXCLUSIVE mode until the end of the transaction.';

create function outbox.detach(source regclass) returns void
language c as 'MODULE_PATHNAME', 'outbox_detach';
comment on function outbox.detach(regclass) is
    'Stops to capture the changes of a table. Events that are captured already are still delivered. Needs ownership of the table. Locks it in ACCESS EXCLUSIVE mode until the end of the transaction.';

create function outbox.emit(
    event_type text, org_id text, ids jsonb, topic text default 'app', version integer default 1
) returns uuid
language c as 'MODULE_PATHNAME', 'emit_wrapper';
comment on function outbox.emit(text, text, jsonb, text, integer) is
    'Adds an event that is no table change and returns its event_id. It is delivered if the transaction commits. event_type must be registered: outbox.create_event_type. ids: an object of at most 8 kB.';
