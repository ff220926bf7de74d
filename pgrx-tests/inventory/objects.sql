-- Everything that extension pg_outbox owns in this database, one line a fact, in an order that
-- does not depend on how it was made. What is as it should be says nothing: an object without a
-- comment or with a grant has a line for it, and a grant to anybody but pg_monitor a mark.
with recursive member as (
    select d.classid, d.objid
    from pg_depend d
    join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass
    where e.extname = 'pg_outbox' and d.deptype = 'e'
),
relation as (
    select c.*, c.oid::regclass::text as name
    from member m
    join pg_class c on c.oid = m.objid and m.classid = 'pg_class'::regclass
    where c.relkind <> 'S'
),
routine as (
    select p.*, format('%s(%s)', p.oid::regproc, pg_get_function_identity_arguments(p.oid)) as name
    from member m
    join pg_proc p on p.oid = m.objid and m.classid = 'pg_proc'::regclass
),
-- (object, rank within the object, place, line)
fact (object, rank, place, line) as (
    select format('1 schema %s', n.nspname), 0, 0::bigint, format('schema %s', n.nspname)
    from member m
    join pg_namespace n on n.oid = m.objid and m.classid = 'pg_namespace'::regclass

    union all
    select format('2 function %s', r.name), 0, 0, format('function %s(%s)', r.oid::regproc,
                                                          pg_get_function_arguments(r.oid))
    from routine r
    union all
    select format('2 function %s', r.name), 1, 0, '    returns ' || pg_get_function_result(r.oid)
    from routine r
    union all
    select format('2 function %s', r.name), 2, 0, '    ' || concat_ws(' ',
        l.lanname,
        case r.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
        case r.proparallel when 's' then 'parallel-safe' when 'r' then 'parallel-restricted'
             else 'parallel-unsafe' end,
        case when r.proisstrict then 'strict' end,
        case when r.proleakproof then 'leakproof' end,
        case when r.prosecdef then 'security-definer' end,
        case when r.prokind <> 'f' then 'kind ' || r.prokind::text end,
        case when l.lanname = 'c' then r.prosrc end)
    from routine r
    join pg_language l on l.oid = r.prolang
    union all
    select format('2 function %s', r.name), 3, s.place, '    set ' || s.setting
    from routine r
    cross join lateral unnest(r.proconfig) with ordinality as s (setting, place)

    union all
    select format('3 relation %s', r.name), 0, 0, concat_ws(' ',
        case r.relkind when 'r' then 'table' when 'v' then 'view' when 'p' then 'partitioned table'
             else 'relation of kind ' || r.relkind::text end,
        r.name,
        case when r.relpersistence <> 'p' then 'persistence ' || r.relpersistence::text end,
        case when r.relrowsecurity then 'row-security' end,
        (select 'inherits ' || string_agg(i.inhparent::regclass::text, ', ' order by i.inhseqno)
         from pg_inherits i where i.inhrelid = r.oid),
        case when r.oid = any (e.extconfig) then 'dumped' end)
    from relation r
    join pg_extension e on e.extname = 'pg_outbox'
    union all
    select format('3 relation %s', r.name), 1, o.place, '    with ' || o.option
    from relation r
    cross join lateral unnest(r.reloptions) with ordinality as o (option, place)
    union all
    select format('3 relation %s', r.name), 2, a.attnum, '    ' || concat_ws(' ',
        a.attname, format_type(a.atttypid, a.atttypmod),
        case when a.attnotnull then 'not null' end,
        case when a.attgenerated <> '' then 'generated as' when d.oid is not null then 'default' end,
        pg_get_expr(d.adbin, d.adrelid),
        case when not a.attislocal then '(inherited)'
             when col_description(r.oid, a.attnum) is null then '!! no comment' end)
    from relation r
    join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select format('3 relation %s', r.name), 3, row_number() over (order by c.conname),
           format('    constraint %s %s', c.conname, pg_get_constraintdef(c.oid))
    from relation r
    join pg_constraint c on c.conrelid = r.oid and c.contype <> 'n'
    union all
    select format('3 relation %s', r.name), 4, row_number() over (order by i.indexrelid::regclass::text),
           '    ' || pg_get_indexdef(i.indexrelid)
    from relation r
    join pg_index i on i.indrelid = r.oid
    union all
    select format('3 relation %s', r.name), 5, row_number() over (order by t.tgname),
           '    ' || pg_get_triggerdef(t.oid)
    from relation r
    join pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
    union all
    select format('3 relation %s', r.name), 6, row_number() over (order by p.polname),
           format('    policy %s', p.polname)
    from relation r
    join pg_policy p on p.polrelid = r.oid

    union all
    select format('4 sequence %s', s.seqrelid::regclass), 0, 0, concat_ws(' ',
        'sequence', s.seqrelid::regclass, format_type(s.seqtypid, null),
        format('start %s step %s cache %s', s.seqstart, s.seqincrement, s.seqcache),
        case when s.seqcycle then 'cycle' end,
        (select format('owned by %s.%I', d.refobjid::regclass, a.attname)
         from pg_depend d
         join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where d.classid = 'pg_class'::regclass and d.objid = s.seqrelid and d.deptype = 'a'),
        case when s.seqrelid = any (e.extconfig) then 'dumped' end)
    from member m
    join pg_sequence s on s.seqrelid = m.objid and m.classid = 'pg_class'::regclass
    join pg_extension e on e.extname = 'pg_outbox'

    union all
    select format('5 other %s', pg_describe_object(m.classid, m.objid, 0)), 0, 0,
           pg_describe_object(m.classid, m.objid, 0)
    from member m
    where m.classid not in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_namespace'::regclass)

    union all
    select format('6 setting %s', s.name), 0, 0, concat_ws(' ',
        'setting', s.name, s.vartype, 'default', quote_literal(s.boot_val), s.unit,
        s.min_val || '..' || s.max_val, s.context)
    from pg_settings s
    where s.name like 'pg\_outbox.%'

    union all
    select o.object, 8, 0, '    !! no comment'
    from (
        select m.*, case m.classid
            when 'pg_namespace'::regclass then '1 schema ' || (select nspname from pg_namespace where oid = m.objid)
            when 'pg_proc'::regclass then '2 function ' || (select name from routine where oid = m.objid)
            when 'pg_class'::regclass then
                case when exists (select from pg_sequence where seqrelid = m.objid)
                     then '4 sequence ' else '3 relation ' end || m.objid::regclass
            else '5 other ' || pg_describe_object(m.classid, m.objid, 0)
        end as object
        from member m
    ) o
    where obj_description(o.objid, (select relname from pg_class where oid = o.classid)) is null

    union all
    select g.object, 9, row_number() over (order by g.grantee, g.privilege),
           format('    %s %s may %s', case when g.grantee = 'pg_monitor' then 'grant' else '!!' end,
                  g.grantee, g.privilege)
    from (
        select o.object, o.owner,
               case a.grantee when 0 then 'PUBLIC' else pg_get_userbyid(a.grantee) end as grantee,
               a.privilege_type as privilege
        from (
            select '1 schema ' || n.nspname as object, n.nspowner as owner,
                   coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl
            from member m
            join pg_namespace n on n.oid = m.objid and m.classid = 'pg_namespace'::regclass
            union all
            select '2 function ' || r.name, r.proowner, coalesce(r.proacl, acldefault('f', r.proowner))
            from routine r
            union all
            select case c.relkind when 'S' then '4 sequence ' else '3 relation ' end || c.oid::regclass,
                   c.relowner,
                   coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char",
                                                 c.relowner))
            from member m
            join pg_class c on c.oid = m.objid and m.classid = 'pg_class'::regclass
            union all
            select '3 relation ' || r.name, r.relowner, a.attacl
            from relation r
            join pg_attribute a on a.attrelid = r.oid and a.attacl is not null
            union all
            select '5 other ' || pg_describe_object(m.classid, m.objid, 0), t.typowner,
                   coalesce(t.typacl, acldefault('T', t.typowner))
            from member m
            join pg_type t on t.oid = m.objid and m.classid = 'pg_type'::regclass
        ) o
        cross join lateral aclexplode(o.acl) a
        where a.grantee <> o.owner
    ) g
)
select line from fact order by object collate "C", rank, place, line collate "C";
