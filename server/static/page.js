"use strict";
const $ = (id) => document.getElementById(id);
let facts = null; // what the server says of its model
let running = null; // the AbortController of the pictures being drawn
let drawn = false; // whether the frames hold pictures, which stay until the next ones

// What the server or this page can say of a failure, in words for the person in front of it.
class Failure extends Error {
  constructor(message, param) { super(message); this.param = param; }
}

// A browser told to keep nothing refuses its storage; the page works without.
function stored(use) {
  try { return use(sessionStorage); } catch { return null; }
}

async function ask(path, options = {}) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) {
    if (key) stored((storage) => storage.setItem("zipar-key", key));
    return answer;
  }
  const { error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key-box").hidden = false;
  const message = error?.message ?? `The server answered ${answer.status}.`;
  throw new Failure(message, answer.status === 401 ? "key" : error?.param);
}

// Server-sent events as objects, their comments too: they tell where the picture stands. A block ends at an empty line.
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      else if (block.startsWith(":")) yield { standing: JSON.parse(block.slice(1)) };
    }
  }
}

const standingIn = ({ queued, rows, of }) =>
  queued === undefined ? `${rows} of ${of} rows` : queued ? `Waiting, ${queued} ahead` : "Waiting";

function wordsFor(error) {
  if (error instanceof Failure) return error.message;
  console.error(error); // the network's, or a mistake in this page
  return "The server cannot be reached, or the connection broke off.";
}

function showFailure(failures) {
  document.querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
  $("error").textContent = [...new Set(failures.map(wordsFor))].join(" ");
  $("error").hidden = !failures.length;
  // The server names a field as the API does; some have one here, by their last name.
  const field = $(failures[0]?.param?.split(".").pop() ?? "");
  if (!field?.matches("#form input, #form select")) return;
  field.setAttribute("aria-invalid", "true");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

const drawnSeed = () => Math.floor(Math.random() * facts.limits.drawn_seed);
const columns = () => facts.windows[$("size").value].max;
const secondsOf = (report) => report.seconds.queue + report.seconds.decode + report.seconds.pixels;

function wishes() {
  const number = (id) => ($(id).value === "" ? null : $(id).valueAsNumber);
  return {
    prompt: `${$("style").value} ${$("prompt").value}`.trim(),
    size: $("size").value,
    // Drawn here where the field is empty, so that all pictures share it.
    seed: number("seed") ?? drawnSeed(),
    guidance_scale: number("guidance_scale"),
    temperature: number("temperature"),
    stream: true,
    partial_images: 3,
  };
}

// What Draw draws: the chosen window, beside raster order without and with drafts where wished.
function plans() {
  const window = $("window").valueAsNumber;
  const raster = { window: columns(), name: "Raster order", file: `window-${columns()}`, zipar: { adaptive: false, drafts: 0 } };
  const drafts = {
    ...raster, name: "Raster + drafts", claim: "the same picture",
    file: `${raster.file}-drafts`,
    // Not "auto", which may make none beside other pictures.
    zipar: { adaptive: false, drafts: 16 },
  };
  const adaptive = $("adaptive").checked;
  const zipar = {
    window, name: `ZipAR, window ${window}${adaptive ? " or more" : ""}`,
    file: `window-${window}${adaptive ? "-adaptive" : ""}`, zipar: { adaptive },
  };
  const chosen = window === columns() ? [] : [zipar];
  if (!$("compare").checked) return chosen.length ? chosen : [raster];
  return [raster, ...chosen, ...($("drafts").checked ? [drafts] : [])];
}

// Empty frames, one for each picture to draw.
function newPanes() {
  const panes = plans().map((plan) => {
    const figure = $("pane").content.cloneNode(true).firstElementChild;
    const part = (selector) => figure.querySelector(selector);
    const label = plan.claim ? `${plan.name}: ${plan.claim}` : plan.name;
    part("strong").textContent = label;
    part(".frame").style.aspectRatio = $("size").value.replace("x", "/");
    return {
      ...plan, label, figure, image: part("img"), facts: part(".facts"), verdict: part(".verdict"), link: part("a"),
    };
  });
  $("pictures").replaceChildren(...panes.map((pane) => pane.figure));
  $("ratio").hidden = true;
  return panes;
}

async function drawInto(pane, wish, signal) {
  pane.figure.ariaBusy = "true";
  pane.facts.textContent = "Waiting";
  try {
    const answer = await ask("v1/images/generations", {
      method: "POST",
      body: JSON.stringify({ ...wish, zipar: { ...pane.zipar, window: pane.window } }),
      signal,
    });
    for await (const event of eventsOf(answer)) {
      if (event.standing) {
        pane.facts.textContent = standingIn(event.standing);
        continue;
      }
      if (event.error) throw new Failure(event.error.message, event.error.param);
      pane.image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
      pane.image.hidden = false;
      pane.image.alt = `${wish.prompt}: ${pane.label}`;
      if (event.type === "image_generation.completed") return finish(pane, wish, event);
      pane.facts.textContent = standingIn(event.zipar);
    }
    throw new Failure("The connection ended before the picture was whole.");
  } catch (error) {
    pane.facts.textContent = signal.aborted ? "Stopped" : "Failed";
    throw error;
  } finally {
    pane.figure.ariaBusy = "false";
  }
}

function finish(pane, wish, { zipar, seed, output_format: format }) {
  pane.facts.textContent = `${zipar.steps} steps, ${secondsOf(zipar).toFixed(2)} s`;
  pane.link.href = pane.image.src;
  const name = (wish.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).slice(0, 8).join("-");
  pane.link.download = `${name}-seed-${seed}-${pane.file}.${format}`;
  pane.link.ariaLabel = `Download ${pane.label}`;
  pane.link.hidden = false;
  return zipar;
}

async function draw() {
  const wish = wishes();
  const panes = newPanes();
  drawn = true;
  showFailure([]);
  setRunning(new AbortController());
  const { signal } = running;
  $("status").textContent = `Drawing with seed ${wish.seed}.`;
  $("results").scrollIntoView({ block: "nearest" }); // below the form on a phone
  // At the same time: all are seen to grow, and share the engine alike.
  const ends = await Promise.allSettled(panes.map((pane) => drawInto(pane, wish, signal)));
  setRunning(null);
  const failures = ends.filter((end) => end.reason).map((end) => end.reason);
  if (!failures.length) showGains(panes, ends.map((end) => end.value));
  else if (!signal.aborted) showFailure(failures);
  const together = ["", ", both at the same time", ", all at the same time"][panes.length - 1];
  const done = `Done with seed ${wish.seed}${together}.`;
  $("status").textContent = !failures.length ? done : signal.aborted ? "Stopped." : "";
}

// What the others gain over raster order, and whether what claims to be its picture is.
function showGains([raster, ...others], [first, ...reports]) {
  if (!others.length) return;
  const gains = others.map((pane, index) => {
    const steps = (first.steps / reports[index].steps).toFixed(1);
    const seconds = (secondsOf(first) / secondsOf(reports[index])).toFixed(1);
    return `${steps} times the steps and ${seconds} times the seconds of ${pane.name}`;
  });
  $("ratio").textContent = `Raster order took ${gains.join("; ")}.`;
  $("ratio").hidden = false;
  for (const pane of others.filter((other) => other.claim)) {
    const same = pane.image.src === raster.image.src;
    pane.verdict.textContent = same ? "Same bytes as raster order" : "Other bytes than raster order";
    pane.verdict.hidden = false;
    pane.figure.classList.toggle("differs", !same);
  }
}

// Draw keeps the focus, so it is not disabled; Stop hands it back.
function setRunning(controller) {
  running = controller;
  $("draw").ariaDisabled = String(!!running);
  if (document.activeElement === $("stop")) $("draw").focus();
  $("stop").disabled = !running;
}

function fillIn({ id, zipar }) {
  facts = zipar;
  $("model").textContent = `Model: ${id}`;
  const options = (names) => names.map((name) => new Option(name, name));
  $("size").replaceChildren(...options(zipar.sizes));
  $("size-box").hidden = zipar.sizes.length < 2;
  for (const name of ["guidance_scale", "temperature"]) {
    Object.assign($(name), zipar.options[name], { placeholder: zipar.defaults[name] });
  }
  const { concepts = [], styles = [] } = zipar;
  $("concepts").replaceChildren(...options(concepts));
  $("prompt").placeholder = concepts.length ? `such as ${concepts[0]}` : "";
  $("ideas-box").hidden = !concepts.length;
  $("ideas-box").firstElementChild.textContent = `What the model can draw (${concepts.length})`;
  $("ideas").replaceChildren(...concepts.map((name) => {
    const onclick = () => { $("prompt").value = name; };
    return Object.assign(document.createElement("button"), { type: "button", textContent: name, onclick });
  }));
  $("style").replaceChildren(new Option("Any", ""), ...options(styles));
  $("style-box").hidden = !styles.length;
  $("window").max = columns(); // first, because it limits the value
  $("window").value = zipar.defaults.window;
  showWindow();
}

function showWindow() {
  $("window").max = columns();
  $("window-value").textContent = `${$("window").value} of ${columns()}`;
  $("columns").textContent = columns();
  $("drafts").disabled = !$("compare").checked;
  if (!drawn) newPanes(); // empty frames say what Draw would draw
}

async function load() {
  try {
    const { data } = await (await ask("v1/models")).json();
    fillIn(data[0]);
    showFailure([]);
  } catch (error) {
    showFailure([error]);
  }
}

$("window").oninput = $("size").onchange = $("adaptive").onchange = $("compare").onchange = $("drafts").onchange = () => facts && showWindow();
$("new-seed").onclick = () => { if (facts) $("seed").value = drawnSeed(); };
$("stop").onclick = () => running?.abort();
// An invalid field has to be seen before the browser can point at it.
$("form").addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (!facts) await load();
  if (facts && !running) await draw();
};
$("key").onchange = () => facts || load();
$("key").value = stored((storage) => storage.getItem("zipar-key")) ?? "";
load();
