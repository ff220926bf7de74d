// @ts-check
/** What `outbox.status` says of the sink, and the switches of the Realtime server. */
import { call } from './api.mjs';
import { element, find, format, setText, toast } from './dom.mjs';

const POLL_MS = 1_000;

/**
 * @typedef {object} Sink
 * @property {string} sink
 * @property {string} state
 * @property {number} lag_events
 * @property {number | null} lag_ms
 * @property {number} in_flight
 * @property {number} rate
 * @property {string | null} last_error
 * @property {number | null} retry_in_ms
 * @property {number} attempts
 */

export function createDelivery() {
  const root = find('.delivery');
  const place = find('.sinks', root);
  const stop = find('[data-testid=realtime-stop]', root);
  const start = find('[data-testid=realtime-start]', root);
  /** @type {ReturnType<typeof createSink>[]} */
  let views = [];

  /** @param {{ sinks: Sink[], realtime: { running: boolean, switchable: boolean } }} answer */
  const accept = ({ sinks, realtime }) => {
    if (views.length !== sinks.length) {
      views = sinks.map(createSink);
      place.replaceChildren(...views.map((view) => view.element));
    }
    sinks.forEach((sink, index) => views[index].update(sink));
    stop.toggleAttribute('disabled', !realtime.switchable || !realtime.running);
    start.toggleAttribute('disabled', !realtime.switchable || realtime.running);
    stop.title = realtime.switchable ? '' : 'This Realtime is your own';
  };
  const flip = (/** @type {boolean} */ running) => async () => {
    stop.toggleAttribute('disabled', true);
    start.toggleAttribute('disabled', true);
    try {
      accept(await call('POST', 'realtime', { running }));
    } catch (error) {
      toast(/** @type {Error} */ (error).message, 'trouble');
    }
  };
  stop.addEventListener('click', flip(false));
  start.addEventListener('click', flip(true));

  const poll = async () => {
    // Nobody reads a hidden page.
    if (!document.hidden) await call('GET', 'delivery').then(accept, () => lost(views));
    setTimeout(poll, POLL_MS);
  };
  return { watch: poll };
}

/** @param {ReturnType<typeof createSink>[]} views */
function lost(views) {
  for (const view of views) view.lose();
}

/** @param {Sink} first */
function createSink(first) {
  const state = element('span', { class: 'state', data: { testid: 'sink-state' } });
  const error = element('p', { class: 'error', data: { testid: 'sink-error' }, hidden: true });
  const figures = ['Waiting', 'Oldest', 'In flight', 'Rate'].map((name) => {
    const value = element(
      'dd',
      { data: { testid: `sink-${name.toLowerCase().replace(' ', '-')}` } },
      '–',
    );
    return { value, pair: element('div', {}, element('dt', {}, name), value) };
  });
  const view = element(
    'div',
    { class: 'sink' },
    element('p', { class: 'sink-head' }, element('strong', {}, first.sink), state),
    element('dl', { class: 'figures' }, ...figures.map(({ pair }) => pair)),
    error,
  );

  const update = (/** @type {Sink} */ sink) => {
    setText(state, sink.state);
    state.dataset.state = sink.state;
    const texts = [
      format(sink.lag_events),
      sink.lag_ms === null ? '–' : `${format(Math.round(sink.lag_ms))} ms`,
      format(sink.in_flight),
      `${format(Math.round(sink.rate))}/s`,
    ];
    texts.forEach((text, index) => setText(figures[index].value, text));
    const troubled = sink.state !== 'running' && sink.last_error !== null;
    error.hidden = !troubled;
    if (troubled) setText(error, `${sink.last_error}${describeRetry(sink)}`);
  };
  const lose = () => {
    setText(state, 'no answer');
    state.dataset.state = 'no answer';
  };
  return { element: view, update, lose };
}

/** @param {Sink} sink */
function describeRetry({ retry_in_ms: wait, attempts }) {
  if (wait === null) return '';
  const when = wait > 500 ? `in ${format(Math.ceil(wait / 1000))} s` : 'now';
  return ` Failed ${attempts === 1 ? 'once' : `${format(attempts)} times`}, next try ${when}.`;
}
