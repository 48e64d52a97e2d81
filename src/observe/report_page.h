// Style and script of the report page. Internal to observe.
#pragma once

namespace temper {

extern const char* const kReportStyle;   // beside kChartStyle
extern const char* const kReportScript;  // values under the pointer

}  // namespace temper
