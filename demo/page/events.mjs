// @ts-check
/**
 * The events as they arrive, each with its latency: from the clock just before the commit, as the
 * event carries it, to the moment its line is in the page. Both clocks are this machine's in the
 * demo. Events of one kind in one message share a line.
 */
import { element, find, format, setText } from './dom.mjs';
import { committedAt } from './live.mjs';

const LINES_MAX = 60;
const BARS_MAX = 48;
/** A bar of full height; the promise is a tenth of it. */
const BAR_MS = 1_000;
const PROMISE_MS = 100;

/** @typedef {import('./live.mjs').Event} Event */
/** @typedef {{ label: HTMLElement, events: Event[] }} Line */

/** @param {{ origin: string }} options this tab's origin */
export function createEvents({ origin }) {
  const root = find('.live');
  const list = find('.events', root);
  const bars = find('.bars', root);
  /** @type {number[]} */
  let latencies = [];
  let changes = 0;
  let messages = 0;

  const slot = (/** @type {string} */ name, /** @type {string} */ text) =>
    setText(find(`[data-slot=${name}]`, root), text);
  const summarise = () => {
    const sorted = [...latencies].sort((a, b) => a - b);
    slot('median', sorted.length > 0 ? inMs(sorted[Math.floor(sorted.length / 2)]) : '–');
    slot('last', latencies.length > 0 ? inMs(latencies[latencies.length - 1]) : '–');
    slot('changes', format(changes));
    slot('messages', format(messages));
  };
  const addBar = (/** @type {number} */ latency) => {
    const share = Math.log10(Math.max(latency, 1)) / Math.log10(BAR_MS);
    const bar = element('span', { data: { slow: String(latency > PROMISE_MS) } });
    bar.style.setProperty('--height', `${Math.min(100, Math.max(6, share * 100))}%`);
    bars.append(bar);
    while (bars.children.length > BARS_MAX) bars.children[0].remove();
  };
  find('[data-testid=clear-events]', root).addEventListener('click', () => {
    list.replaceChildren();
    bars.replaceChildren();
    latencies = [];
    changes = messages = 0;
    summarise();
  });

  return {
    /**
     * Shows the events of one message and returns its lines, to be named once their rows are read.
     *
     * @param {Event[]} events
     * @returns {Line[]}
     */
    add(events) {
      const lines = groupByKind(events).map((group) => {
        const line = createLine(group, group[0].origin === origin);
        list.prepend(line.element);
        // The oldest of the line: what waited longest for the message.
        const latency = Math.max(0, Date.now() - Math.min(...group.map(committedAt)));
        line.time.append(inMs(latency));
        line.time.dataset.ms = String(latency);
        line.time.toggleAttribute('data-slow', latency > PROMISE_MS);
        latencies.push(latency);
        addBar(latency);
        return line;
      });
      while (list.children.length > LINES_MAX) list.children[list.children.length - 1].remove();
      messages += 1;
      changes += events.reduce((sum, { count = 1 }) => sum + count, 0);
      summarise();
      return lines;
    },
    /** A line that is not an event, such as a lost connection. */
    note(/** @type {string} */ text) {
      list.prepend(element('li', { class: 'note', data: { testid: 'note' } }, text));
    },
  };
}

/** @param {Event[]} events */
function groupByKind(events) {
  /** @type {Map<string, Event[]>} */
  const groups = new Map();
  for (const event of events) {
    const kind = `${kindOf(event)} ${event.origin ?? ''}`;
    const group = groups.get(kind);
    if (group) group.push(event);
    else groups.set(kind, [event]);
  }
  return [...groups.values()];
}

const kindOf = (/** @type {Event} */ event) =>
  event.event_type === 'refresh' ? `${event.entity}.refresh` : event.event_type;

/** What the rows of an event are. */
export const entityOf = (/** @type {Event} */ event) =>
  event.entity ?? event.event_type.split('.')[0];

/**
 * @param {Event[]} events of one kind
 * @param {boolean} isOwn
 */
function createLine(events, isOwn) {
  const [event] = events;
  const kind = kindOf(event);
  const label = element('small', { class: 'label' }, describe(events));
  const time = element('span', { class: 'latency', data: { testid: 'latency' } });
  const line = element(
    'li',
    { data: { testid: 'event', kind, entity: entityOf(event) } },
    element('code', {}, kind),
    isOwn ? element('span', { class: 'own', data: { testid: 'own' } }, 'this tab') : '',
    time,
    label,
  );
  return { element: line, label, time, events };
}

/** @param {Event[]} events */
function describe(events) {
  const [{ event_type: type, count, ids = {} }] = events;
  if (type === 'refresh') return `${format(count ?? 0)} changes in one line: read them all anew`;
  if (events.length > 1) return `${format(events.length)} changes in one message`;
  return Object.entries(ids)
    .map(([name, value]) => `${name} ${value}`)
    .join(', ');
}

const inMs = (/** @type {number} */ latency) =>
  latency < 10_000 ? `${Math.round(latency)} ms` : `${format(Math.round(latency / 1000))} s`;
