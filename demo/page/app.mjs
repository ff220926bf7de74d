// @ts-check
/** The page: signs somebody in, then joins what they see with what they hear. */
import { authorise, call, origin } from './api.mjs';
import { createDelivery } from './delivery.mjs';
import { element, find, format, setText, toast } from './dom.mjs';
import { createEvents, entityOf } from './events.mjs';
import { createFlags } from './flags.mjs';
import { STATUSES, createJobs, nameOf } from './jobs.mjs';
import { follow } from './live.mjs';

/** Each tab is a person of its own, so that one browser can be several. */
const SESSION = 'session';
/** After these, rows have come or gone, and reading some by their ids would not show it. */
const READS_ALL = /^(refresh|job\.created|\w+\.deleted)$/;
/** More changes at once than this are told as a number. */
const TOLD_MAX = 2;

const CONNECTION = {
  connecting: 'Connecting',
  live: 'Live',
  away: 'Reconnecting',
  refused: 'Not allowed to listen',
};

const stored = sessionStorage.getItem(SESSION);
if (stored) startApplication(JSON.parse(stored));
else showPeople();

async function showPeople() {
  const people = await call('GET', 'people');
  const organisations = new Map();
  for (const person of people) {
    organisations.set(person.organisation, [
      ...(organisations.get(person.organisation) ?? []),
      person,
    ]);
  }
  const signIn = async (/** @type {string} */ id) => {
    sessionStorage.setItem(
      SESSION,
      JSON.stringify(await call('POST', 'session', { person_id: id })),
    );
    location.reload();
  };
  find('[data-testid=people]').append(
    ...[...organisations].map(([organisation, members]) =>
      element(
        'section',
        { class: 'card' },
        element('h2', {}, organisation),
        ...members.map((/** @type {any} */ { id, name, duty }) =>
          element(
            'button',
            { type: 'button', class: 'member', onclick: () => signIn(id) },
            element('span', { class: 'avatar', 'aria-hidden': 'true' }, name[0]),
            element('span', {}, element('strong', {}, name), element('small', {}, duty)),
          ),
        ),
      ),
    ),
  );
  find('#sign-in').hidden = false;
}

/** @param {any} session */
function startApplication({ person, token, realtime }) {
  authorise(token);
  document.title = `${person.name} · ${person.organisation}`;
  for (const [slot, text] of Object.entries({ ...person, initial: person.name[0] })) {
    const place = document.querySelector(`.top [data-slot=${slot}]`);
    if (place) place.textContent = text;
  }
  find('[data-testid=sign-out]').addEventListener('click', () => {
    sessionStorage.removeItem(SESSION);
    location.reload();
  });
  find('#application').hidden = false;

  const events = createEvents({ origin });
  const jobs = createJobs({ onFlag: (job) => flags.raise(job) });
  const flags = createFlags({ onChange: (ids) => jobs.changed(ids) });
  const loadAll = () => Promise.all([jobs.load(), flags.load()]).catch(reportTrouble);
  createDelivery().watch();
  loadAll();

  const connection = find('.connection');
  let wasAway = false;
  follow({
    realtime,
    token,
    orgId: person.org_id,
    onEvents: (batch) => {
      const lines = events.add(batch);
      readAnew(batch, { jobs, flags })
        .then(() => tell(lines, { jobs, flags }))
        .catch(reportTrouble);
    },
    onState: (state) => {
      connection.dataset.state = state;
      setText(connection, CONNECTION[state]);
      // Broadcasts are not repeated for those who were away, so what they see may be old.
      if (state === 'live' && wasAway) {
        loadAll().then(() => events.note('Connected again, everything read anew'));
      }
      if (state === 'away' && !wasAway) events.note('The connection to Realtime is lost');
      wasAway = state === 'away';
    },
  });
}

/**
 * @typedef {object} Views
 * @property {ReturnType<typeof createJobs>} jobs
 * @property {ReturnType<typeof createFlags>} flags
 */

/**
 * Reads the rows that events speak of: those with ids by their ids, and all of an entity after a
 * refresh, or when rows came or went.
 *
 * @param {import('./live.mjs').Event[]} batch
 * @param {Views} views
 */
function readAnew(batch, { jobs, flags }) {
  return Promise.all(
    Object.entries({ job: jobs, flag: flags }).map(([entity, view]) => {
      const concerned = batch.filter((event) => entityOf(event) === entity);
      if (concerned.some(({ event_type: type }) => READS_ALL.test(type))) return view.load();
      const ids = concerned.map((event) => String(event.ids?.[`${entity}_id`]));
      return ids.length > 0 ? view.changed(ids) : undefined;
    }),
  );
}

/**
 * Names what the ids of a message stand for, now that the rows are read, and tells the person of
 * it unless they did it themselves, here.
 *
 * @param {import('./events.mjs').Line[]} lines
 * @param {Views} views
 */
function tell(lines, views) {
  const foreign = lines.flatMap(({ events }) => events).filter((event) => event.origin !== origin);
  const isFlood = foreign.length > TOLD_MAX || foreign.some(({ count }) => count);
  for (const { label, events } of lines) {
    if (events.length > 1 || events[0].count) continue;
    const text = describeRow(events[0], views);
    if (!text) continue; // The row is gone already.
    label.title = label.textContent ?? '';
    label.textContent = text;
    if (!isFlood && events[0].origin !== origin) toast(text);
  }
  if (!isFlood) return;
  for (const entity of new Set(foreign.map(entityOf))) {
    const concerned = foreign.filter((event) => entityOf(event) === entity);
    const count = concerned.reduce((sum, event) => sum + (event.count ?? 1), 0);
    toast(`${format(count)} ${entity}s changed`);
  }
}

/**
 * @param {import('./live.mjs').Event} event
 * @param {Views} views
 */
function describeRow({ ids = {} }, { jobs, flags }) {
  const row = flags.find(String(ids.flag_id)) ?? jobs.find(String(ids.job_id));
  if (!row) return null;
  const state =
    'reason' in row
      ? `flag ${row.resolved ? 'resolved' : 'raised'}, ${row.reason.toLowerCase()}`
      : STATUSES[row.status].toLowerCase();
  return `${nameOf(row)}: ${state}`;
}

function reportTrouble(/** @type {Error} */ error) {
  toast(`Cannot read the changes: ${error.message}`, 'trouble');
}
