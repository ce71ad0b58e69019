// The first page: the table of models, and the budget that picks one. What is picked was worked out by zoo itself.
"use strict";

const $ = (id) => document.getElementById(id);
const choice = $("choice") ? JSON.parse($("choice").textContent) : { measures: [] };
const state = { measure: choice.measures[0], stop: 0 };

// -- the table -----------------------------------------------------------------------------------

const keys = [...$("table").querySelectorAll("thead th")].map((head) => head.dataset.key);
const column = (key) => keys.indexOf(key);
const rows = $("table").tBodies[0].rows.length;
const table = new DataTable("#table", {
  autoWidth: false,
  order: [[column("macs"), "asc"]],
  orderMulti: false,
  columnDefs: [
    { targets: ".most", orderSequence: ["desc", "asc"] },
    { targets: "_all", orderSequence: ["asc", "desc"] },
  ],
  paging: rows > 100,
  pageLength: 50,
  lengthMenu: [50, 100, 500],
  layout: { topStart: "info", topEnd: null, bottomStart: rows > 100 ? "pageLength" : null, bottomEnd: rows > 100 ? "paging" : null },
  language: { info: "_TOTAL_ of _MAX_ models", infoEmpty: "no model", infoFiltered: "", zeroRecords: "No model is within these limits." },
});
const named = (index) => table.row(index).node().dataset.name;
const ordered = (index, key) => Number(table.cell(index, column(key)).node().dataset.order);

const onFront = () => new Set(state.measure?.stops.map(([, , pick]) => pick));
table.search.fixed("limits", (text, row, index) => {
  if (text === null) return true;
  const least = Number($("least").value) / 100;
  if (least > 0 && column("pgd20") > 0 && ordered(index, "pgd20") < least) return false;
  if ($("within").checked && state.measure && ordered(index, "macs") > state.measure.stops[state.stop][0]) return false;
  if ($("front").checked && !onFront().has(named(index))) return false;
  return true;
});
$("search").addEventListener("input", (event) => table.search(event.target.value).draw());
$("family").addEventListener("input", (event) => table.column(column("family")).search(event.target.value, { exact: true }).draw());
for (const id of ["least", "within", "front"]) $(id).addEventListener("input", () => table.draw());
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").hidden = false;

// -- the budget ----------------------------------------------------------------------------------

async function show() {
  const [budget, text, name] = state.measure.stops[state.stop];
  const { href, facts } = choice.picks[name];
  $("budget-text").textContent = text;
  $("budget").setAttribute("aria-valuetext", `${text} MACs, ${name}`);
  $("pick").textContent = name;
  $("pick").href = href;
  $("pick-facts").replaceChildren(
    ...facts.map(([term, fact]) => {
      const pair = document.createElement("div");
      pair.append(Object.assign(document.createElement("dt"), { textContent: term }));
      pair.append(Object.assign(document.createElement("dd"), { textContent: fact }));
      return pair;
    }),
  );
  const command = state.measure.command.replace("{}", text);
  $("pick-command").textContent = command;
  $("pick-export").textContent = `${command} --export onnx`;
  for (const row of table.rows().nodes().toArray()) row.classList.toggle("picked", row.dataset.name === name);
  if ($("within").checked || $("front").checked) table.draw();
  const view = await views["accuracy-over-macs"];
  view.signal("measure", state.measure.protocol).signal("budget", budget).signal("pick", name);
  view.signal("published", $("published")?.checked ?? false).runAsync();
}

function choose(protocol) {
  const before = state.measure.stops[state.stop]?.[0];
  state.measure = choice.measures.find((one) => one.protocol === protocol);
  const { stops } = state.measure;
  const within = stops.filter(([budget]) => before === undefined || budget <= before);
  state.stop = Math.max(0, within.length - 1);
  $("budget").max = stops.length - 1;
  $("budget").value = state.stop;
  show();
}

if (state.measure) {
  const fifteen = state.measure.stops.filter(([budget]) => budget <= 15e6).length;
  state.stop = fifteen ? fifteen - 1 : state.measure.stops.length - 1;
  $("measure").addEventListener("input", (event) => choose(event.target.value));
  $("budget").addEventListener("input", (event) => {
    state.stop = Number(event.target.value);
    show();
  });
  $("published")?.addEventListener("input", show);
  $("picker").addEventListener("submit", (event) => event.preventDefault());
  choose($("measure").value);
  views["accuracy-over-macs"].then((view) =>
    view.addEventListener("click", (event, item) => {
      const href = item?.datum?.kind === "model" && choice.models[item.datum.name];
      if (href) location.href = href;
    }),
  );
}
